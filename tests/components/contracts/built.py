"""Parts built from their examples, in the small world of `conftest.py`. The contract tests find new files unasked."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from policysmith.components.base import Feature
from policysmith.components.heads.flow_matching import FlowMatching
from policysmith.components.registry import (
    REGISTRIES,
)
from policysmith.schemas.specs import FEATURES

PARTS = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry.names()]
MODULES = [(kind, name) for kind, name in PARTS if kind != "collators"]
WEIGHTED = [(kind, name) for kind, name in PARTS if kind in ("backbones", "necks", "heads", "networks")]


class Built:
    """A part built from its example; a network is built inside a flow-matching head."""

    def __init__(self, kind: str, name: str, world: Any) -> None:
        self.kind, self.name, self.world = kind, name, world
        self.cls = REGISTRIES[kind].get(name)
        self.config = self.cls.example()
        self.whole, self.whole_config = self.cls, self.config
        if kind == "networks":
            self.whole = FlowMatching
            self.whole_config = FlowMatching.Config(type="flow_matching", network=self.config, steps=4)
        self.facts = {
            **self.cls.facts(self.config),
            **(world.facts if kind in ("transforms", "collators") else {}),
        }
        self.inputs = self._inputs()
        if self.is_head:
            self.facts |= self.whole.fit(self.whole_config, self.inputs, self.facts, self._chunks)

    @property
    def is_head(self) -> bool:
        return self.kind in ("heads", "networks")

    def _inputs(self) -> dict[str, Any]:
        given: dict[str, Any] = self.world.every_feature
        if self.is_head:
            kinds, named = self.whole.kinds(self.whole_config), self.whole_config.reads
            return {
                key: spec
                for key, spec in given.items()
                if spec.kind not in FEATURES or (spec.kind in kinds and (named is None or key in named))
            }
        if self.kind == "necks":
            named = [entry for role in self.cls.roles for entry in getattr(self.config, role) or ()]
            return {entry: given[entry] for entry in named}
        return self.world.specs  # type: ignore[no-any-return]

    def _chunks(self) -> tuple[Tensor, Tensor]:
        batch = self.world.batch(64)
        return batch["action"].clamp(-1.0, 1.0), self.world.is_pad(batch)

    def features(
        self, size: int = 3, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> dict[str, Any]:
        """Return the inputs of a head, a network or a neck."""
        found = self.world.features(size, device, dtype=dtype)
        return {key: feature for key, feature in found.items() if key in self.inputs}

    def make(self, device: str = "cpu", seed: int = 0) -> Any:
        torch.manual_seed(seed)
        with torch.device(device):
            if self.kind == "collators":
                return self.cls(self.config, self.facts)
            return self.whole(self.whole_config, self.inputs, self.facts)

    def specs(self) -> dict[str, Any]:
        return self.whole.specs(self.whole_config, self.inputs, self.facts)  # type: ignore[no-any-return]

    def run(self, part: Any, size: int = 3, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """Everything that the part computes, in tensors by name."""
        torch.manual_seed(seed)
        dtype = next((p.dtype for p in part.parameters()), torch.float32)
        if self.kind in ("backbones", "necks"):
            given = self.world.batch(size, device, floats=True)
            given = given if self.kind == "backbones" else self.features(size, device, dtype)
            found = part(given, tuple(self.specs()))
            return {key: feature.values for key, feature in found.items()}
        if self.is_head:
            features, batch = self.features(size, device, dtype), self.world.batch(size, device)
            losses = part.loss(features, batch["action"], self.world.is_pad(batch))
            return {**losses, "action": part.sample(features, torch.Generator().manual_seed(seed))}
        found = part(self.world.batch(size, device))
        return {key: value for key, value in found.items() if isinstance(value, Tensor)}


def every(parts: list[tuple[str, str]]) -> Any:
    return pytest.mark.parametrize(
        "built", parts, indirect=True, ids=[f"{kind}-{name}" for kind, name in parts]
    )


def of(*registries: Any) -> Any:
    return every([(registry.kind, name) for registry in registries for name in registry.names()])


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value.dtype == second[key].dtype, key
        assert torch.equal(value, second[key]), key


def randomize(module: nn.Module) -> None:
    """Move every parameter off its initial value: zero gates let no gradient through."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


def skip_without_weights(part: nn.Module) -> None:
    if not list(part.parameters()):
        pytest.skip("the part has no weights")


def rows(feature: Feature, which: slice) -> Feature:
    """Return some samples of a feature."""
    held = (feature.values, feature.mask, feature.end)
    return Feature(*(None if value is None else value[which] for value in held))  # type: ignore[arg-type]


def replace_rows(feature: Feature, which: slice) -> Feature:
    """Return the feature with other values in some samples."""
    values = feature.values.clone()
    values[which] += 1.0
    return dataclasses.replace(feature, values=values)


def assert_same_batch(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]) if isinstance(value, Tensor) else value == second[key], key


def masked_where(feature: Feature, change: Any, hidden: bool) -> Feature:
    """Return the feature with changed values of its hidden tokens, or of its valid ones."""
    if feature.mask is None:
        return feature
    mask = feature.mask
    while mask.ndim < feature.values.ndim - 1:
        mask = mask[:, None]
    values = torch.where(mask[..., None] ^ hidden, change(feature.values), feature.values)
    return dataclasses.replace(feature, values=values)


def samples_of(built: Built) -> list[dict[str, Any]]:
    batch = built.world.batch()
    keys = [key for key in batch if not key.startswith("task.")]
    return [{key: batch[key][index] for key in keys} for index in range(3)]
