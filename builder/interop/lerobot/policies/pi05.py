"""pi0.5 of LeRobot as a policy of ours, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..expert_inputs import STATE_PROMPT, Inputs, Processor
from . import pi0
from .pi0 import to_lerobot, to_policysmith

INPUTS = Inputs(
    "pi05_prepare_state_tokenizer_processor_step", "image_resolution", "center", padded=("action",)
)
STEPS = INPUTS.steps


def is_of(recipe: Mapping[str, Any]) -> bool:
    """Whether a resolved recipe is of this family."""
    return pi0.is_of(recipe, time="adarms")


def transforms(config: Mapping[str, Any], normalize: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The transforms of a recipe, around those that normalise. Raises WeightsError."""
    return INPUTS.transforms(config, normalize, 224)


def processor(content: Mapping[str, Any]) -> Processor:
    """Options of the config, steps of the preprocessor, and what is left to do of the content. Raises WeightsError."""
    return INPUTS.processor(content, STATE_PROMPT, "cleaned")


__all__ = ["STEPS", "is_of", "processor", "to_lerobot", "to_policysmith", "transforms"]
