"""Contract of collators."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policysmith.components.registry import (
    COLLATORS,
)

from .built import Built, assert_same_batch, of, samples_of


@of(COLLATORS)
def test_collator_publishes_real_shapes(built: Built) -> None:
    inputs = {key: spec for key, spec in built.inputs.items() if key != "task.input_ids"}
    specs = built.cls.specs(built.config, inputs, built.facts)
    assert inputs.items() <= specs.items()
    batch = built.make()(samples_of(built))
    for key, spec in specs.items():
        shape = (len(batch[key]),) if isinstance(batch[key], list) else tuple(batch[key].shape)
        assert shape == (3, *spec.dims[1:]), key
    expected = built.world.batch()
    for key in inputs:
        assert (
            torch.equal(batch[key], expected[key])
            if isinstance(batch[key], Tensor)
            else batch[key] == expected[key]
        )


@of(COLLATORS)
def test_collator_is_rebuilt_from_its_assets(built: Built, tmp_path: Path, saved_tokenizer: Any) -> None:
    if built.name == "language":
        tokenizer = saved_tokenizer(tmp_path)["tokenizer"]
        built.config = built.config.model_copy(update={"tokenizer": tokenizer})
    part, samples = built.make(), samples_of(built)
    expected = part(samples)
    assets = tmp_path / "assets"
    assets.mkdir()
    part.save_assets(assets)
    for path in tmp_path.iterdir():
        if path != assets:
            shutil.rmtree(path)
    assert_same_batch(expected, built.cls(built.config, built.facts, assets)(samples))
    assert_same_batch(expected, pickle.loads(pickle.dumps(part))(samples))
