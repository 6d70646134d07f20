"""Bundled architectures: nothing in them is misspelt, and they have as many parameters as the models they are named after."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForImageTextToText, T5ForConditionalGeneration

from policysmith.components.pretrained import models
from policysmith.components.pretrained.models import as_config, read_config

FILES = sorted((Path(models.__file__).parent / "architectures").glob("*.json"))
PUBLISHED = {
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": 507.5,
    "OpenGVLab/InternVL3-1B-hf": 938.2,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3754.6,
    "Qwen/Qwen3-VL-2B-Instruct": 2127.5,
    "Qwen/Qwen3-VL-4B-Instruct": 4437.8,
    "distilbert/distilbert-base-uncased": 66.4,
    "facebook/dinov2-base": 86.6,
    "facebook/dinov2-large": 304.4,
    "facebook/dinov3-vitb16-pretrain-lvd1689m": 85.7,
    "google-bert/bert-base-uncased": 109.5,
    "google-t5/t5-base": 222.9,
    "google/paligemma-3b-pt-224": 2923.5,
    "google/siglip-base-patch16-224": 203.2,
    "google/siglip-so400m-patch14-224": 877.4,
    "google/vit-base-patch16-224-in21k": 86.4,
    "microsoft/Florence-2-large": 776.7,
    "openai/clip-vit-base-patch16": 149.6,
    "sentence-transformers/all-MiniLM-L6-v2": 22.7,
}
"""Millions of parameters that the model's page on the hub gives."""


def nested(held: dict[str, Any], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the config and its parts, each with its place."""
    yield place, held
    for key, value in held.items():
        if isinstance(value, dict) and "model_type" in value:
            yield from nested(value, f"{place}{key}.")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_key_means_something(path: Path) -> None:
    for place, held in nested(json.loads(path.read_text())):
        kind = held["model_type"]
        if kind not in CONFIG_MAPPING:
            assert kind == "openvla"
            continue
        known = {field.name for field in fields(CONFIG_MAPPING[kind])} | set(
            CONFIG_MAPPING[kind].attribute_map
        )
        odd = (
            {"use_bidirectional_attention"} if kind == "qwen3" else set()
        )  # PaliGemma asks it of any text model
        assert set(held) - known - odd - {"model_type"} == set(), place
        config = as_config(held).to_dict()
        assert {
            key: config.get(CONFIG_MAPPING[kind].attribute_map.get(key, key))
            for key in held
            if not isinstance(held[key], dict)
        } == {key: value for key, value in held.items() if not isinstance(value, dict)}, place


def test_a_directory_comes_before_what_is_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_config("policysmith/tiny-vit", ("vit",), "")["hidden_size"] == 16
    (tmp_path / "policysmith/tiny-vit").mkdir(parents=True)
    (tmp_path / "policysmith/tiny-vit/config.json").write_text('{"model_type": "vit", "hidden_size": 24}')
    assert read_config("policysmith/tiny-vit", ("vit",), "")["hidden_size"] == 24


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name: str) -> None:
    config = as_config(json.loads((FILES[0].parent / f"{name.replace('/', '--')}.json").read_text()))
    makers: dict[str, Any] = {"t5": T5ForConditionalGeneration._from_config}
    by_default = (
        AutoModelForImageTextToText.from_config
        if hasattr(config, "image_token_id")
        else AutoModel.from_config
    )
    with torch.device("meta"):
        model = makers.get(config.model_type, by_default)(config)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert count == pytest.approx(PUBLISHED[name], rel=0.01)
