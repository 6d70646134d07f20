"""Families of vision-language models: how each encodes images, places tokens and runs its layers."""

from __future__ import annotations

from typing import Any

from .base import VlmFamily
from .florence import Florence
from .internvl import InternVl
from .openvla import OpenVla
from .paligemma import PaliGemma
from .qwen import Qwen3Vl, Qwen25Vl
from .smolvlm import SmolVlm

FAMILIES: dict[str, type[VlmFamily]] = {
    "florence2": Florence,
    "internvl": InternVl,
    "openvla": OpenVla,
    "paligemma": PaliGemma,
    "qwen2_5_vl": Qwen25Vl,
    "qwen3_vl": Qwen3Vl,
    "smolvlm": SmolVlm,
}
"""Supported families by the `model_type` of their configs."""


def family_of(json: dict[str, Any], depth: int | None) -> VlmFamily:
    """Return the family of a model config, with the first `depth` layers of its language model."""
    family = FAMILIES[json["model_type"]]
    return family(family.parse(family.truncate(json, depth)))
