"""Contract of the options of every part."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from policysmith.builder.cli import example_of

from .built import PARTS, Built, assert_equal, every


@every(PARTS)
def test_the_example_that_explain_prints_is_valid(built: Built) -> None:
    options = YAML(typ="safe").load(example_of(built.cls))
    assert options["type"] == built.name
    assert built.cls.Config.model_validate(options) == built.config
    with pytest.raises(ValidationError, match="extra_forbidden"):
        built.cls.Config.model_validate({**options, "no_such_option": 1})
    with pytest.raises(ValidationError, match="frozen"):
        built.config.type = "other"
    for name, field in built.cls.Config.model_fields.items():
        if field.annotation in (int, float, bool):
            with pytest.raises(ValidationError):
                built.cls.Config.model_validate({**options, name: "1"})


@every(PARTS)
def test_a_sentence_of_the_class_describes_its_config(built: Built) -> None:
    config = built.cls.Config
    assert config.__doc__
    assert config.model_fields["type"].description == config.__doc__
    assert config.model_json_schema()["properties"]["type"]["description"] == config.__doc__
    assert config.model_json_schema()["additionalProperties"] is False


@every(PARTS)
def test_facts_are_json(built: Built) -> None:
    assert json.loads(json.dumps(built.facts)) == built.facts
    if built.kind == "collators":
        return  # a collator is rebuilt from its assets
    first = built.run(built.make().eval())
    built.facts = json.loads(json.dumps(built.facts))
    assert_equal(first, built.run(built.make().eval()))
