"""Contract of the options of every part; `tests/schemas/test_models.py` holds the rules of all sections."""

from __future__ import annotations

import functools
import json
import textwrap

from ruamel.yaml import YAML

from policysmith.builder.recipe.json_schema import recipe_schema
from policysmith.schemas.questions.explanation import explain

from .built import PARTS, Built, assert_equal, every

schema = functools.cache(recipe_schema)


@every(PARTS)
def test_the_example_of_explain_is_valid_and_the_docstring_describes_it(
    built: Built,
) -> None:
    config = built.cls.Config
    example = explain(f"{built.kind}.{built.name}", schema()).rpartition("example:\n\n")[2]
    options = YAML(typ="safe").load(textwrap.dedent(example))
    assert options["type"] == built.name
    assert config.model_validate(options) == built.config
    assert config.__doc__
    described = config.model_json_schema()
    assert described["properties"]["type"]["description"] == described["description"] == config.__doc__


@every(PARTS)
def test_facts_are_json(built: Built) -> None:
    assert json.loads(json.dumps(built.facts)) == built.facts
    if built.kind == "collators":
        return  # a collator is rebuilt from its assets
    first = built.run(built.make().eval())
    built.facts = json.loads(json.dumps(built.facts))
    assert_equal(first, built.run(built.make().eval()))
