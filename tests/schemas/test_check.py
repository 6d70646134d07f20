"""The schema stage, beyond what the pages in `tests/diagnostics` show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from policysmith.schemas import kinds
from policysmith.schemas.check import check, check_against
from policysmith.schemas.json_schema import SchemaTree, shipped_schema
from policysmith.schemas.wording import did_you_mean, near
from policysmith.schemas.yaml.document import Document, from_mapping, parse

GOOD = """
recipe: 1
name: small
data: {path: datasets/x}
policy:
  backbones: {proprio: {type: mlp}}
  head: {type: mlp}
training: {steps: 10}
"""


def changed(**sections: Any) -> Document:
    return from_mapping({**parse(GOOD).value, **sections})


def test_a_good_recipe() -> None:
    assert check(parse(GOOD)) == []


def test_a_custom_policy_has_keys_of_its_own() -> None:
    assert check(changed(policy={"type": "mine", "hidden_dim": 256, "execute": 2})) == []
    (found,) = check(changed(policy={"type": "mine", "execute": 0}))
    assert found.message == "`policy.execute` must be at least 1, found 0"


def test_a_near_miss_of_composed_may_be_registered_by_an_import() -> None:
    policy = {"type": "compose", "size": 1}
    assert [found.code for found in check(changed(policy=policy))] == ["E006 unknown-type"]
    assert check(changed(policy=policy, imports=["parts.py"]), allow_imports=True) == []


def test_types_in_new_files_are_left_to_the_next_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "brand_new.py").write_text("raise RuntimeError('not to be imported')")
    document = changed(policy={"backbones": {"p": {"type": "mlp"}}, "head": {"type": "brand_new", "x": 1}})
    assert [found.code for found in check(document)] == ["E006 unknown-type"]
    monkeypatch.setattr(kinds, "_COMPONENTS", tmp_path)
    assert check(document) == []


def test_types_are_left_to_the_next_stage_where_files_are_imported() -> None:
    document = changed(
        policy={"backbones": {"p": {"type": "mlp"}}, "head": {"type": "mine"}}, imports=["a.py"]
    )
    assert check(document, allow_imports=True) == []


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("yes", "write true"),
        ("OFF", "write false"),
        (1, "expected true or false"),
        (None, "expected true or false"),
    ],
)
def test_booleans(value: Any, label: str) -> None:
    document = from_mapping({"x": value})
    (found,) = check_against(document, (), {"properties": {"x": {"type": "boolean"}}})
    assert found.label == label


@pytest.mark.parametrize(
    ("value", "types", "label"),
    [
        ("0.5", "number", "remove the quotes: 0.5"),
        ("0.5", "integer", "expected an integer"),
        ("5", ["integer", "null"], "remove the quotes: 5"),
        (2.5, "integer", "expected an integer"),
        (True, "integer", "expected an integer"),
        (True, "string", 'add quotes: "true"'),
        ([1], "string", "expected a string"),
        (3, ["array", "null"], "write [3]"),
        ({}, "array", "expected a list"),
    ],
)
def test_cures(value: Any, types: Any, label: str) -> None:
    (found,) = check_against(from_mapping({"x": value}), (), {"properties": {"x": {"type": types}}})
    assert found.label == label


def test_a_name_is_suggested_whatever_its_case() -> None:
    assert near("VIT", ["ViT", "mlp"]) == "ViT"
    assert near("v" * 300, ["v" * 299]) is None
    assert did_you_mean("mpl", ["vit", "mlp"]) == "did you mean `mlp`?"
    assert did_you_mean("xyz", ["vit", "mlp"], "no such part") == "no such part"


UNION = {
    "properties": {
        "x": {
            "description": "A size.",
            "default": "auto",
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"const": "auto"},
                {"type": "array", "items": {"type": "integer"}},
            ],
        }
    }
}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "`x` must be at least 1, found 0"),
        ([1, "2"], '`x[1]` must be an integer, found the string "2"'),
        ("aut", '`x` must be an integer, "auto" or a list, found the string "aut"'),
    ],
)
def test_unions_that_types_do_not_decide(value: Any, message: str) -> None:
    (found,) = check_against(from_mapping({"x": value}), (), UNION)
    assert found.message == message
    assert found.notes == ("`x`: A size. Default: auto.",)


def test_a_wrong_type_is_reported_once() -> None:
    (found,) = check(changed(training={"steps": 1, "precision": 16}))
    assert found.code == "E005 wrong-type"


def test_paths_of_a_part_are_those_of_the_recipe() -> None:
    document = from_mapping({"policy": {"head": {"type": "x", "depht": 1, "inner": {"depth": 0}}}})
    schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "type": {"const": "x"},
            "inner": {"type": "object", "properties": {"depth": {"minimum": 1, "description": "Layers."}}},
        },
    }
    unknown, small = check_against(document, ("policy", "head"), schema)
    assert (unknown.message, unknown.label) == ("`policy.head` has no key `depht`", "unknown key")
    assert (small.message, small.notes) == (
        "`policy.head.inner.depth` must be at least 1, found 0",
        ("`depth`: Layers.",),
    )


def test_the_schema_is_followed_along_the_recipe() -> None:
    tree = SchemaTree(shipped_schema())
    value = parse(GOOD).value
    assert tree.places(value, "lr") == [("training", "optimizer", "lr")]
    assert ("policy", "backbones", "proprio", "hidden") in tree.places(value, "hidden")
    assert tree.at(value, ("policy", "head"))["x-part"] == ("heads", "mlp")
    assert tree.at(value, ("nowhere", "at", "all")) == {}
    assert set(tree.kinds()) == set(kinds.KINDS)


PROBE = """
import sys
from policysmith.schemas.console import build_and_train, policysmith
code = build_and_train([sys.argv[1]])
heavy = {"torch", "transformers", "pydantic", "numpy", "policysmith.builder", "policysmith.components"} & sys.modules.keys()
print(code, sorted(heavy))
"""


@pytest.mark.parametrize("text", [GOOD.replace("steps", "stepps"), "a: [", "a: !x 1\n"])
def test_a_mistake_is_reported_without_torch_and_pydantic(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    done = subprocess.run([sys.executable, "-c", PROBE, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3 []"
    assert "error[" in done.stderr
