"""Overrides from the command line and from Python."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policysmith.schemas.errors import RecipeError
from policysmith.schemas.overrides import apply, apply_mapping
from policysmith.schemas.yaml.document import parse

RECIPE = parse(
    """
training: {steps: 10, optimizer: {lr: 0.1}}
transforms:
  - {type: resize, size: 96}
  - {type: normalize}
evaluation:
groups: {"backbones.*": {lr_scale: 0.1}}
"""
)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("training.steps=20", ("training", "steps"), 20),
        ("training.steps= 20", ("training", "steps"), 20),
        ("training.optimizer.lr=1e-3", ("training", "optimizer", "lr"), 1e-3),
        ("training.optimizer.betas=[0.9, 0.95]", ("training", "optimizer", "betas"), [0.9, 0.95]),
        ("training.schedule.type=linear", ("training", "schedule"), {"type": "linear"}),
        ("transforms.0.size=64", ("transforms", 0, "size"), 64),
        ("transforms.1={type: crop, size: 84}", ("transforms", 1), {"type": "crop", "size": 84}),
        ("evaluation.env=metaworld/x", ("evaluation",), {"env": "metaworld/x"}),
        ('groups."backbones.*".lr_scale=0.5', ("groups", "backbones.*", "lr_scale"), 0.5),
        ("groups.'head.*'={}", ("groups", "head.*"), {}),
        ("name=a=b", ("name",), "a=b"),
        ("name=", ("name",), None),
        ("name=# nothing", ("name",), None),
        ('name="#1"', ("name",), "#1"),
        ("new.path.here=1", ("new",), {"path": {"here": 1}}),
    ],
)
def test_values_are_yaml(text: str, path: tuple[str | int, ...], value: Any) -> None:
    found: Any = apply(RECIPE, [text]).value
    for step in path:
        found = found[step]
    assert found == value


def test_the_document_itself_does_not_change() -> None:
    before = json.dumps(RECIPE.value)
    apply(RECIPE, ["training.steps=20", "transforms.0.size=1"])
    assert json.dumps(RECIPE.value) == before


def test_the_last_override_wins() -> None:
    assert apply(RECIPE, ["training={steps: 1}", "training.steps=2", "training.steps=3"]).value[
        "training"
    ] == {"steps": 3}


def test_places_are_those_of_the_override() -> None:
    document = apply(RECIPE, ['groups."a.b"={x: [1, 22]}'])
    span = document.span(("groups", "a.b", "x", 1))
    assert (str(span), span.text) == ("<command line>:1:25", "22")
    assert span.source.text == '-o groups."a.b"={x: [1, 22]}'
    assert document.span(("groups", "a.b"), "key").text == '"a.b"'
    assert document.span(("training", "steps")).source is RECIPE.root.span.source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.steps", "missing `=`"),
        ("=3", "invalid path"),
        ("", "invalid path"),
        ("training..steps=3", "invalid path"),
        ("training.steps.x=3", "`training.steps` is a single value"),
        ("transforms.2.size=3", "`transforms` is a list of 2 items, counted from 0"),
        ("transforms.first.size=3", "`transforms` is a list"),
        ("transforms.-1.size=3", "`transforms` is a list"),
        ("training.optimizer.betas.0=3", "does not set this list"),
        ("name=[1", "never closed"),
        ("name=!x 1", "tag"),
        ("name=.nan", "finite"),
        ("name={a: 1, a: 2}", "duplicate key"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match="<command line>:1:") as caught:
        apply(RECIPE, [text])
    assert message in str(caught.value)


def test_all_mistakes_are_reported() -> None:
    with pytest.raises(RecipeError) as caught:
        apply(RECIPE, ["a", "name=1", "b"])
    assert len(caught.value.diagnostics) == 2


KEYS = st.text(st.sampled_from("ab_.* -1é"), min_size=1, max_size=6).filter(
    lambda key: not key.strip().isdigit()
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(st.lists(KEYS, min_size=1, max_size=4), VALUES)
def test_what_is_written_is_read_back(path: list[str], value: Any) -> None:
    text = ".".join(f'"{key}"' for key in path) + "=" + json.dumps(value, ensure_ascii=False)
    found: Any = apply(parse("x: {}"), [text]).value
    for step in path:
        found = found[step]
    assert found == value


def test_mappings_are_merged_and_parts_replaced() -> None:
    change = {
        "training.steps": 5,
        "training": {"optimizer": {"eps": 1e-6}},
        "transforms.0": {"type": "crop", "size": 9},
    }
    value = apply_mapping(RECIPE, change).value
    assert value["training"] == {"steps": 5, "optimizer": {"lr": 0.1, "eps": 1e-6}}
    assert value["transforms"] == [{"type": "crop", "size": 9}, {"type": "normalize"}]


def test_python_overrides_are_located_by_path() -> None:
    span = apply_mapping(RECIPE, {"training": {"steps": 5}}).span(("training", "steps"))
    assert str(span) == "<override>: training.steps"


def test_python_overrides_that_cannot_be() -> None:
    with pytest.raises(RecipeError) as caught:
        apply_mapping(RECIPE, {"transforms.5.size": 1, "name": {1, 2}, "meta": {"x": object()}})
    assert [str(found.span) for found in caught.value.diagnostics] == [
        "<override>: transforms.5",
        "<override>: name",
        "<override>: meta.x",
    ]
