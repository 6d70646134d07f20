"""Families of vision-language models: how each encodes images, places tokens and runs its layers."""

from __future__ import annotations

from typing import Any

from .base import VlmFamily
from .families.florence import Florence
from .families.internvl import InternVl
from .families.openvla import OpenVla
from .families.paligemma import PaliGemma
from .families.qwen import Qwen3Vl, Qwen25Vl
from .families.smolvlm import SmolVlm

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
