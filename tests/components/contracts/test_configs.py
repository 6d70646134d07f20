"""What the options of every part keep."""

from __future__ import annotations

import json
import shutil
import typing
from pathlib import Path

import pytest
from pydantic import ValidationError

from .built import PARTS, Built, assert_equal, every


@every(PARTS)
def test_config_is_closed_strict_and_frozen(built: Built) -> None:
    held = built.config.model_dump(mode="json")
    assert built.cls.Config.model_validate(held) == built.config
    with pytest.raises(ValidationError, match="extra_forbidden"):
        built.cls.Config.model_validate({**held, "no_such_option": 1})
    with pytest.raises(ValidationError, match="frozen"):
        built.config.type = "other"
    for name, field in built.cls.Config.model_fields.items():
        if field.annotation in (int, float, bool):
            with pytest.raises(ValidationError):
                built.cls.Config.model_validate({**held, name: "1"})


@every(PARTS)
def test_config_documents_every_option_and_requires_its_type(built: Built) -> None:
    fields = built.cls.Config.model_fields
    assert typing.get_args(fields["type"].annotation) == (built.name,)
    assert fields["type"].is_required()
    assert [name for name, field in fields.items() if not field.description] == []
    assert built.cls.Config.__doc__
    assert json.loads(json.dumps(built.cls.Config.model_json_schema()))["additionalProperties"] is False
    assert built.cls.__doc__


@every(PARTS)
def test_facts_are_json_and_replace_what_they_came_from(built: Built, tmp_path: Path) -> None:
    assert json.loads(json.dumps(built.facts)) == built.facts
    if built.kind == "collators":
        return  # a collator is rebuilt from its assets
    first = built.run(built.make().eval())
    shutil.rmtree(tmp_path)
    built.facts = json.loads(json.dumps(built.facts))
    assert_equal(first, built.run(built.make().eval()))
