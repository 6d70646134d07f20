"""Names of other trainers lead to the keys of a recipe."""

from __future__ import annotations

import pytest

from policysmith.schemas import console
from policysmith.schemas.elsewhere import ELSEWHERE
from policysmith.schemas.json_schema import SchemaTree, shipped_schema


@pytest.mark.parametrize("path", sorted(set(ELSEWHERE.values())))
def test_the_key_exists(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.policysmith(["explain", path]) == console.OK, capsys.readouterr().err


def test_no_name_is_a_key_of_its_own_place() -> None:
    tree = SchemaTree(shipped_schema())
    for name, path in ELSEWHERE.items():
        section = {
            **tree.root["properties"],
            **tree.at({}, tuple(path.split(".")[:-1])).get("properties", {}),
        }
        assert name not in section
