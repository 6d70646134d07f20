"""The families of vision-language models that are known, by the `model_type` of their configs."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING

from .family import Family
from .florence import Florence
from .internvl import InternVl
from .paligemma import PaliGemma
from .qwen import Qwen3Vl, Qwen25Vl
from .smolvlm import SmolVlm

FAMILIES: dict[str, type[Family]] = {
    "florence2": Florence,
    "internvl": InternVl,
    "paligemma": PaliGemma,
    "qwen2_5_vl": Qwen25Vl,
    "qwen3_vl": Qwen3Vl,
    "smolvlm": SmolVlm,
}


def family_of(held: dict[str, Any], depth: int | None) -> Family:
    """The family of a model config, with the first `depth` layers of its language model."""
    family, kind = FAMILIES[held["model_type"]], CONFIG_MAPPING[held["model_type"]]
    cut = family.cut(held, depth)
    return family(kind.from_dict({key: value for key, value in cut.items() if key != "model_type"}))
