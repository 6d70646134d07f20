"""The families of vision-language models that are known, by the `model_type` of their configs."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING

from .family import Family
from .paligemma import PaliGemma

FAMILIES: dict[str, type[Family]] = {"paligemma": PaliGemma}

TEXT_MODELS = ("gemma", "llama", "mistral", "qwen2", "qwen2_5_vl_text", "qwen3", "qwen3_vl_text")
"""Language models whose layers can be read one by one."""


def family_of(held: dict[str, Any], depth: int | None) -> Family:
    """The family of a model config, with the first `depth` layers of its language model."""
    family = FAMILIES[held["model_type"]]
    cut = held if depth is None else family.cut(held, depth)
    kind = CONFIG_MAPPING[held["model_type"]]
    return family(kind.from_dict({key: value for key, value in cut.items() if key != "model_type"}))
