"""Values and places of a parsed recipe."""

from __future__ import annotations

import contextlib
import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policysmith.schemas.diagnostics import Diagnostic
from policysmith.schemas.errors import RecipeError
from policysmith.schemas.yaml.document import Document, from_mapping, parse, read
from policysmith.schemas.yaml.nodes import Key, dotted
from policysmith.schemas.yaml.scalars import resolve

TEXTS = st.text(st.characters(max_codepoint=0x2FF, exclude_categories=["C"]), max_size=8)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)


def trees(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(children, max_size=4) | st.dictionaries(TEXTS, children, max_size=4)


VALUES = st.recursive(SCALARS, trees, max_leaves=20)
MAPPINGS = st.dictionaries(TEXTS, VALUES, min_size=1, max_size=5)


def emit(value: Any, indent: int, draw: Any) -> str:
    """YAML of a value, in block or in flow style as drawn, with comments here and there."""
    if not value or not isinstance(value, (dict, list)) or draw(st.booleans()):
        return " " + json.dumps(value, ensure_ascii=False) + draw(st.sampled_from(["", "  # 1: [note]"]))
    lines = []
    pairs = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    for key, inner in pairs:
        head = "-" if key is None else json.dumps(key, ensure_ascii=False) + ":"
        lines.append(
            "\n"
            + draw(st.sampled_from(["", "\n", "# c\n"]))
            + " " * indent
            + head
            + emit(inner, indent + 2, draw)
        )
    return "".join(lines)


def walk(value: Any, path: tuple[Key, ...] = ()) -> Any:
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from walk(inner, (*path, key))


@settings(max_examples=60)
@given(MAPPINGS, st.data())
def test_every_span_covers_exactly_its_value(value: dict[str, Any], data: st.DataObject) -> None:
    text = emit(value, 0, data.draw).strip("\n").lstrip(" ")
    document = parse(text)
    assert document.value == value
    for path, inner in walk(value):
        span = document.span(path)
        if isinstance(inner, (dict, list)):
            assert (
                parse(" " * 4 + "v:\n" + " " * (span.column + 4) + _shifted(span.text, 5)).value["v"] == inner
            )
        else:
            assert json.loads(span.text) == inner
        if path and isinstance(path[-1], str):
            assert json.loads(document.span(path, "key").text) == path[-1]


def _shifted(text: str, columns: int) -> str:
    return text.replace("\n", "\n" + " " * columns)


@given(MAPPINGS)
def test_plain_values_come_through_unchanged(value: dict[str, Any]) -> None:
    assert from_mapping(value).value == value


@given(st.text(max_size=60) | st.text(st.sampled_from("ab:-[]{}&*!|>'\"#%?,\n\t 1<@~"), max_size=40))
def test_any_text_is_a_mapping_or_a_recipe_error(text: str) -> None:
    with contextlib.suppress(RecipeError):
        assert isinstance(parse(text).value, dict)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.", 1.0),
        (".5", 0.5),
        ("+7", 7),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("yes", "yes"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("~", None),
        ("", None),
        ("Null", None),
        ("TRUE", True),
        ("tRue", "tRue"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_core_schema(text: str, value: object) -> None:
    found = resolve(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", [".nan", ".inf", "-.Inf", "1e999", "9" * 20, "9" * 5000, "0xFFFFFFFFFFFFFFFF"]
)
def test_numbers_that_no_recipe_holds(text: str) -> None:
    with pytest.raises(ValueError, match=r"64 bits|finite"):
        resolve(text)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400])
def test_whole_numbers_from_python_have_the_bounds_of_the_text(number: int) -> None:
    with pytest.raises(RecipeError, match="64 bits"):
        from_mapping({"seed": number})
    assert from_mapping({"seed": 2**63 - 1}).value == {"seed": 2**63 - 1}


def test_a_named_pipe_is_refused_and_a_pipe_of_the_shell_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecipeError, match="named pipe"):
        read(tmp_path / "pipe")
    reading, writing = os.pipe()
    os.write(writing, b"recipe: 1")
    os.close(writing)
    assert read(Path(f"/dev/fd/{reading}")).value == {"recipe": 1}
    os.close(reading)


def spans(document: Document, *paths: tuple[Key, ...]) -> list[str]:
    return [document.span(path).text for path in paths]


def test_aliases_and_merges_are_located() -> None:
    document = parse("base: &base\n  a: 1\n  b: 2\ncopy: *base\nmore:\n  <<: *base\n  b: 3\n")
    assert document.value == {"base": {"a": 1, "b": 2}, "copy": {"a": 1, "b": 2}, "more": {"a": 1, "b": 3}}
    assert spans(document, ("base",), ("copy",), ("copy", "a")) == ["a: 1\n  b: 2", "*base", "1"]
    assert [document.span(("more", key)).line for key in ("a", "b")] == [2, 7]


def test_earlier_mappings_of_a_merge_win_and_own_keys_win_over_them() -> None:
    text = "x: &x {a: 1, b: 1}\ny: &y {b: 2, c: 2}\nz: {c: 3, <<: [*x, *y]}\n"
    assert parse(text).value["z"] == {"a": 1, "b": 1, "c": 3}


def test_a_quoted_merge_key_is_a_key() -> None:
    assert parse('"<<": 1').value == {"<<": 1}


def test_merging_something_else_is_reported() -> None:
    with pytest.raises(RecipeError, match=r"E005.*`<<`"):
        parse("a: {<<: 1}")


def test_anchors_are_no_part_of_a_span() -> None:
    document = parse("a: &x true\nb: &y\n  # comment\n  c: 1\nd: &z [1]\n")
    assert spans(document, ("a",), ("b",), ("d",)) == ["true", "c: 1", "[1]"]


def test_empty_values_are_shown_at_their_key() -> None:
    document = parse("a:\nb: {c: , d}\n")
    assert spans(document, ("a",), ("b", "c"), ("b", "d")) == ["a", "c", "d"]


def test_what_is_missing_is_located_at_the_nearest_key() -> None:
    document = parse("policy:\n  head: {hidden: [1]}\n")
    assert spans(document, ("policy", "head", "x", "y"), ("policy", "head", "hidden", 3)) == [
        "head",
        "hidden",
    ]
    assert document.span(("other",)).line == 0


def test_line_ends_and_byte_order_mark() -> None:
    document = parse("\ufeffa: 1\r\nb: {c: 2}\r\n")
    assert document.value == {"a": 1, "b": {"c": 2}}
    assert str(document.span(("b", "c"))) == "<recipe>:2:8"


def test_line_separators_of_unicode_do_not_shift_lines() -> None:
    document = parse('a: "x\u2028y"\nb: 1\n')
    assert document.span(("b",)).line == 2


def findings(text: str) -> list[Diagnostic]:
    with pytest.raises(RecipeError) as caught:
        parse(text)
    return list(caught.value.diagnostics)


def test_what_does_not_end_parsing_is_all_reported() -> None:
    found = findings("a: !x 1\na: 2\n3: 4\nb: .nan\n")
    assert [(d.code[:4], d.span.line) for d in found] == [("E008", 1), ("E002", 2), ("E005", 3), ("E007", 4)]


@pytest.mark.parametrize(
    "text",
    ["a: " + "[" * 100 + "]" * 100, "a: " + "{b: " * 100 + "1" + "}" * 100, "a: " + "[" * 100_000],
    ids=["lists", "mappings", "endless"],
)
def test_depth_is_limited(text: str) -> None:
    assert findings(text)[0].code == "E008 refused-yaml"


def test_depth_is_limited_across_aliases() -> None:
    chain = "".join(f"a{i}: &a{i} {{x: {{x: *a{i - 1}}}}}\n" for i in range(1, 40))
    assert findings(f"a0: &a0 1\n{chain}")[0].code == "E008 refused-yaml"


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("a: 1\n", encoding="utf-8")
    assert read(path).directory == tmp_path
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(RecipeError, match="not UTF-8 text: byte 3 is 0xff"):
        read(path)
    with pytest.raises(RecipeError, match="is a directory"):
        read(tmp_path)
    with pytest.raises(RecipeError, match="no such file"):
        read(tmp_path / "gone.yaml")


class Loss(StrEnum):
    L1 = "l1"


def test_python_values_become_plain() -> None:
    value = from_mapping({"a": (1, 2), "b": Path("x/y"), "c": Loss.L1}).value
    assert value == {"a": [1, 2], "b": "x/y", "c": "l1"}
    assert type(value["c"]) is str


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": {1: 2}}, r"keys must be strings, found 1\n --> recipe: a"),
        ({"a": [{"b": {1, 2}}]}, r"`a\[0\]\.b` is a builtins\.set"),
        ({"a": float("nan")}, "`a` must be finite"),
    ],
)
def test_python_values_that_no_recipe_holds(value: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        from_mapping(value)


def test_endless_python_values() -> None:
    value: dict[str, Any] = {}
    value["self"] = value
    with pytest.raises(RecipeError, match="nested"):
        from_mapping(value)


def test_dotted() -> None:
    assert dotted(("a", 0, "b.c", "d")) == 'a[0]."b.c".d'
