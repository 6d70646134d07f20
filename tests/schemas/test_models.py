"""Rules that every section and every part's `Config` keeps."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from policysmith.components.registry import REGISTRIES
from policysmith.schemas.recipe import CustomPolicySection, Recipe


def below(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from below(argument)


def walk(model: type[BaseModel], seen: dict[type[BaseModel], None]) -> dict[type[BaseModel], None]:
    if model not in seen:
        seen[model] = None
        for field in model.model_fields.values():
            for inner in below(field.annotation):
                walk(inner, seen)
    return seen


CONFIGS = [registry.get(name).Config for registry in REGISTRIES.values() for name in registry.names()]
MODELS: dict[type[BaseModel], None] = {}
for root in (Recipe, *CONFIGS):
    walk(root, MODELS)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__qualname__)
def test_models_are_closed_strict_frozen_and_described(model: type[BaseModel]) -> None:
    assert model.model_config.get("extra") == ("allow" if model is CustomPolicySection else "forbid")
    assert model.model_config.get("strict") is True
    assert model.model_config.get("frozen") is True
    assert model.model_config.get("validate_default") is True
    undescribed = [
        name for name, field in model.model_fields.items() if not (field.description or "").strip()
    ]
    assert undescribed == []


def test_the_walk_reaches_sections_below_sections() -> None:
    assert {"Recipe", "GroupSection", "CustomPolicySection", "EvaluationSection"} <= {
        m.__name__ for m in MODELS
    }
    assert len(CONFIGS) >= 4


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__qualname__)
def test_no_option_needs_a_value_that_yaml_lacks(model: type[BaseModel]) -> None:
    """Strict models refuse a list for a tuple or set, and a string for a path or an enum."""
    text = " ".join(str(field.annotation) for field in model.model_fields.values())
    assert not any(word in text for word in ("tuple[", "set[", "bytes", "Path"))
