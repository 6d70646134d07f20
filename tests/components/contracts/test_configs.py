"""Contract of the options of every part; `tests/schemas/test_models.py` holds the rules of all sections."""

from __future__ import annotations

import json

from ruamel.yaml import YAML

from policysmith.builder.cli import example_of

from .built import PARTS, Built, assert_equal, every


@every(PARTS)
def test_the_example_is_valid_and_the_docstring_describes_the_options(built: Built) -> None:
    config, options = built.cls.Config, YAML(typ="safe").load(example_of(built.cls))
    assert options["type"] == built.name
    assert config.model_validate(options) == built.config
    assert config.__doc__
    schema = config.model_json_schema()
    assert schema["properties"]["type"]["description"] == schema["description"] == config.__doc__


@every(PARTS)
def test_facts_are_json(built: Built) -> None:
    assert json.loads(json.dumps(built.facts)) == built.facts
    if built.kind == "collators":
        return  # a collator is rebuilt from its assets
    first = built.run(built.make().eval())
    built.facts = json.loads(json.dumps(built.facts))
    assert_equal(first, built.run(built.make().eval()))
