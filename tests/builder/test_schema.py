"""The generated JSON Schema."""

from __future__ import annotations

import json
from typing import Any, Literal

from jsonschema import Draft202012Validator
from pydantic import Field

from policysmith.builder.recipe.json_schema import model_schema, recipe_schema, schema_text, write_schema
from policysmith.components.registry import REGISTRIES
from policysmith.schemas.json_schema import SCHEMA_FILE
from policysmith.schemas.part import Section


def test_the_shipped_schema_is_up_to_date() -> None:
    fresh = SCHEMA_FILE.exists() and SCHEMA_FILE.read_text(encoding="utf-8") == schema_text()
    assert fresh, "schemas/recipe.v1.json is stale: run `policysmith schema --write`"


def test_it_is_a_schema_that_knows_every_part() -> None:
    schema = recipe_schema()
    Draft202012Validator.check_schema(schema)
    for kind, registry in REGISTRIES.items():
        assert schema["$defs"][kind]["properties"]["type"]["enum"] == registry.shipped


def test_it_is_the_same_every_time_and_sorted() -> None:
    text = schema_text()
    assert text == schema_text()
    for value in _mappings(json.loads(text)["$defs"]):
        assert list(value) == sorted(value)


def test_it_has_no_form_that_editors_explain_badly() -> None:
    for value in _mappings(recipe_schema()["$defs"]):
        assert not value.keys() & {"oneOf", "discriminator"}


def test_editors_agree_about_plain_recipes() -> None:
    validator = Draft202012Validator(recipe_schema())
    recipe: dict[str, Any] = {
        "recipe": 1,
        "name": "small",
        "data": {"path": "x"},
        "policy": {"backbones": {"proprio": {"type": "mlp"}}, "head": {"type": "mlp"}},
        "training": {"steps": 1},
    }
    assert validator.is_valid(recipe)
    assert validator.is_valid({**recipe, "policy": {"type": "mine", "hidden_dim": 3}})
    assert not validator.is_valid({**recipe, "policy": {"type": "composed", "hidden_dim": 3}})
    assert not validator.is_valid({**recipe, "policy": {**recipe["policy"], "hed": 3}})
    (error,) = validator.iter_errors({**recipe, "collator": {"type": "default", "x": 1}})
    assert error.json_path == "$.collator"
    assert "'x' was unexpected" in error.message


def test_writing_only_touches_what_changes(tmp_path: Any) -> None:
    path = tmp_path / "schema.json"
    assert [write_schema(path), write_schema(path)] == [True, False]
    assert path.read_text() == schema_text()


class Beta(Section):
    """Draws by a beta distribution."""

    type: Literal["beta"]
    a: float = 1.5


class Uniform(Section):
    """Draws evenly."""

    type: Literal["uniform"]


class Example(Section):
    title: int | None = Field(default=3, ge=1)
    size: int | list[int] = 1
    mode: Literal["a", "b"] | None = None
    either: Literal["auto"] | int = "auto"
    time: Beta | Uniform = Field(discriminator="type")
    betas: list[float] = Field(default_factory=lambda: [0.9])
    inner: Uniform = Field(default_factory=lambda: Uniform(type="uniform"))


def test_unions() -> None:
    found = model_schema(Example)["properties"]
    assert found["title"] == {"type": ["integer", "null"], "minimum": 1, "default": 3}
    assert found["size"] == {"type": ["integer", "array"], "items": {"type": "integer"}, "default": 1}
    assert found["mode"] == {"type": ["string", "null"], "enum": ["a", "b", None]}
    assert found["either"]["anyOf"] == [{"type": "string", "const": "auto"}, {"type": "integer"}]
    assert found["betas"]["default"] == [0.9]
    assert found["inner"]["default"] == {"type": "uniform"}
    assert found["time"]["properties"]["type"]["enum"] == ["beta", "uniform"]
    validator = Draft202012Validator(model_schema(Example))
    assert validator.is_valid({"time": {"type": "beta", "a": 1}})
    assert not validator.is_valid({"time": {"type": "uniform", "a": 1}})
    assert not validator.is_valid({"time": {"a": 1}})


def _mappings(value: Any) -> Any:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _mappings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _mappings(inner)
