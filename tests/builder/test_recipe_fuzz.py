"""Recipes drawn from the schema, and good recipes spoilt at random: both stages agree, and nothing else is raised."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from policysmith.builder.recipe.load import load_recipe
from policysmith.builder.recipe.rules import contradictions
from policysmith.builder.recipe.validate import part_sites
from policysmith.components.registry import REGISTRIES
from policysmith.schemas.check import check, check_against
from policysmith.schemas.composition import composed, resolved
from policysmith.schemas.errors import RecipeError, RegistryError
from policysmith.schemas.json_schema import SchemaTree, shipped_schema
from policysmith.schemas.recipe import Recipe
from policysmith.schemas.yaml.document import from_mapping, read

GOOD: dict[str, Any] = {
    "recipe": 1,
    "name": "small",
    "data": {"path": "datasets/x", "cameras": ["front"], "validation": 0.1},
    "policy": {
        "backbones": {"vision": {"type": "vit", "width": 64}, "proprio": {"type": "mlp", "hidden": [32]}},
        "head": {"type": "mlp", "hidden": [64, 64], "loss": "l1"},
        "freeze": ["backbones.*"],
    },
    "transforms": [{"type": "random_shift", "pixels": 4}, {"type": "normalize", "modes": {"action": "q99"}}],
    "collator": {"type": "default"},
    "training": {
        "steps": 10,
        "optimizer": {"betas": [0.9, 0.95], "groups": [{"match": "head.*", "lr_scale": 0.5}]},
    },
    "evaluation": {"env": "metaworld/x", "control": "blind"},
    "meta": {"note": [1, None, {"deep": True}]},
}
RECIPES = Path(__file__).parents[2] / "recipes"
STARTS = [
    GOOD,
    *(
        resolved(composed(read(path))).value
        for path in sorted(RECIPES.rglob("*.yaml"))
        if "datasets" not in path.parts
    ),
]
BEYOND_SCHEMA = {"value_error", "assertion_error", "contradiction"}
TREE = SchemaTree(shipped_schema())
COMMON = settings(max_examples=80, suppress_health_check=list(HealthCheck))
PARTS = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry.names()]


def complaints(model: type[BaseModel], value: Any) -> list[str]:
    try:
        model.model_validate(value)
    except ValidationError as error:
        return [detail["type"] for detail in error.errors()]
    return []


def all_complaints(recipe: dict[str, Any]) -> list[str]:
    """Return the findings of pydantic about a recipe and its parts, as types of errors, and those of the rules."""
    found = complaints(Recipe, recipe)
    if not found and contradictions(from_mapping(recipe), Recipe.model_validate(recipe)):
        found.append("contradiction")
    for kind, _, raw in part_sites(recipe):
        try:
            part = REGISTRIES[kind].get(raw["type"])
        except (KeyError, TypeError, RegistryError):
            found.append("unknown_type")
        else:
            found += complaints(part.Config, raw)
    return found


SPOILERS = st.one_of(
    st.sampled_from(
        [None, True, False, 0, 1, -1, 2.0, 0.5, 1e30, "", "mlp", "q99", "12", "yes", [], {}, [1], [None]]
    ),
    st.sampled_from(
        [{"type": "mlp"}, {"type": "vit"}, {"type": 3}, [{"type": "normalize"}], {"x": 1}, "name\n"]
    ),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def spoilt(draw: st.DrawFn) -> dict[str, Any]:
    recipe = copy.deepcopy(draw(st.sampled_from(STARTS)))
    for _ in range(draw(st.integers(1, 3))):
        options = list(places(recipe))
        if not options:
            break
        *path, last = draw(st.sampled_from(options))
        parent: Any = recipe
        for step in path:
            parent = parent[step]
        how = draw(st.sampled_from(["replace", "delete", "rename"]))
        if how == "replace":
            parent[last] = copy.deepcopy(draw(SPOILERS))
        elif isinstance(parent, list):
            parent.pop(last)
        elif how == "delete":
            del parent[last]
        else:
            parent[draw(st.sampled_from(["type", "hidden", "lr", "stesp", "X", last + "s"]))] = parent.pop(
                last
            )
    return recipe


def assert_stages_agree(recipe: dict[str, Any]) -> None:
    """Both stages accept a recipe, or refuse it, and nothing else is raised."""
    said = check(from_mapping(recipe), allow_imports=True)
    thought = all_complaints(recipe)
    if not thought:
        assert not said
    elif not said:
        assert set(thought) <= BEYOND_SCHEMA


def assert_loads_or_is_refused(recipe: dict[str, Any]) -> None:
    """A recipe loads, and in full as the same; or the loader refuses it with findings."""
    recipe.pop("imports", None)
    if all_complaints(recipe):
        with pytest.raises(RecipeError, match=r"^error\[E"):
            load_recipe(recipe)
    else:
        whole = load_recipe(recipe).resolved()
        assert load_recipe(whole).resolved() == whole


@COMMON
@given(spoilt())
def test_spoilt_recipes(recipe: dict[str, Any]) -> None:
    assert_stages_agree(recipe)
    assert_loads_or_is_refused(recipe)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(COMMON, max_examples=5_000)
@given(spoilt())
def test_thousands_of_spoilt_recipes(recipe: dict[str, Any]) -> None:
    assert_stages_agree(recipe)


def test_the_good_recipe_is_good() -> None:
    assert load_recipe(GOOD).resolved()
    assert all_complaints(GOOD) == []


def drawn(schema: Any) -> st.SearchStrategy[Any]:
    """Values that a schema allows."""
    schema = TREE.expand(schema, None)
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of([drawn(branch) for branch in schema["anyOf"]])
    types = schema.get("type", [])
    return st.one_of(
        [_of_type(name, schema) for name in ([types] if isinstance(types, str) else types)] or [st.none()]
    )


def _of_type(name: str, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if name in ("integer", "number"):
        low, high = schema.get("minimum"), schema.get("maximum")
        above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        if name == "integer":
            low = above + 1 if above is not None else low
            high = below - 1 if below is not None else high
            step = schema.get("multipleOf", 1)
            least = -99 if low is None else math.ceil(low)
            most = 9999 if high is None else math.floor(high)
            return st.integers(-(-least // step), most // step).map(lambda number: number * step)
        low, high = (above if above is not None else low), (below if below is not None else high)
        return st.floats(
            low, high, exclude_min=above is not None, exclude_max=below is not None, allow_nan=False
        ).filter(math.isfinite)
    if name == "string":
        pattern = schema.get("pattern")
        return (
            st.from_regex(pattern, fullmatch=True)
            if pattern
            else st.text(min_size=schema.get("minLength", 0))
        )
    if name == "array":
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        return st.lists(
            drawn(schema["items"]), min_size=least, max_size=most if most is not None else least + 2
        )
    if name == "object":
        required = set(schema.get("required", ()))
        known = {key: drawn(child) for key, child in schema.get("properties", {}).items()}
        fixed = st.fixed_dictionaries(
            {key: value for key, value in known.items() if key in required},
            optional={key: value for key, value in known.items() if key not in required},
        )
        other = schema.get("additionalProperties")
        if not isinstance(other, dict):
            return fixed
        more = st.dictionaries(
            st.from_regex("[a-z]+", fullmatch=True),
            drawn(other),
            min_size=schema.get("minProperties", 0),
            max_size=2,
        )
        return st.builds(lambda a, b: {**b, **a}, fixed, more)
    return {"boolean": st.booleans(), "null": st.none()}[name]


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=lambda value: str(value))
def test_options_drawn_from_the_schema_are_valid(kind: str, name: str) -> None:
    schema = shipped_schema()["$defs"][f"{kind}.{name}"]
    config = REGISTRIES[kind].get(name).Config

    @settings(COMMON, max_examples=30)
    @given(drawn(schema))
    def agree(value: Any) -> None:
        assert check_against(from_mapping({"part": value}), ("part",), schema) == []
        assert set(complaints(config, value)) <= BEYOND_SCHEMA

    agree()
