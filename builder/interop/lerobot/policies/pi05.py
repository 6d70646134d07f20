"""Conversion of LeRobot's pi0.5."""

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
    """Return whether a resolved recipe belongs to this family."""
    return pi0.is_of(recipe, time="adarms")


def transforms(config: Mapping[str, Any], normalize: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the transforms of a recipe, given the normalizing ones, or raise WeightsError."""
    return INPUTS.transforms(config, normalize, 224)


def processor(content: Mapping[str, Any]) -> Processor:
    """Return config options, preprocessor steps and remaining content, or raise WeightsError."""
    return INPUTS.processor(content, STATE_PROMPT, "cleaned")


__all__ = ["STEPS", "is_of", "processor", "to_lerobot", "to_policysmith", "transforms"]
