"""Rendering of diagnostics."""

from __future__ import annotations

import json
import pickle

import pytest

from policysmith.schemas.diagnostics import Diagnostic, Source, Span, in_order
from policysmith.schemas.errors import RecipeError

TEXT = "name: vit\npolicy:\n  head: {type: mlp}\n"
SOURCE = Source("r.yaml", TEXT)
HEAD = Span(SOURCE, 3, 3, 3, 7)


def test_a_finding_with_everything() -> None:
    found = Diagnostic(
        "E021 dim-mismatch",
        "they differ",
        HEAD,
        "512 here",
        related=((Span(SOURCE, 1, 7, 1, 10), "384 there"),),
        notes=("no weight has been allocated", "two\nlines"),
        help="make them equal",
    )
    assert found.render() == (
        "error[E021 dim-mismatch]: they differ\n"
        " --> r.yaml:3:3\n"
        "  |\n"
        "3 |   head: {type: mlp}\n"
        "  |   ^^^^ 512 here\n"
        " ::: r.yaml:1:7\n"
        "  |\n"
        "1 | name: vit\n"
        "  |       --- 384 there\n"
        "  = note: no weight has been allocated\n"
        "  = note: two\n"
        "          lines\n"
        "  = help: make them equal"
    )


def test_color_only_adds_escapes() -> None:
    found = Diagnostic("E003 unknown-key", "no", HEAD, "label", ((HEAD, "other"),), ("note",), "help")
    colored = found.render(color=True)
    plain = colored
    for code in ("\x1b[1;31m", "\x1b[1;34m", "\x1b[1m", "\x1b[0m"):
        assert code in colored
        plain = plain.replace(code, "")
    assert plain == found.render()


def test_without_text_the_path_of_keys_stands_for_the_line() -> None:
    found = Diagnostic(
        "E007 invalid-value", "too small", Span(Source("recipe"), path="policy.head.hidden"), "at least 1"
    )
    assert found.render() == (
        "error[E007 invalid-value]: too small\n --> recipe: policy.head.hidden\n  | at least 1"
    )


def test_a_whole_source() -> None:
    assert Diagnostic("E001 invalid-yaml", "empty", Span(SOURCE)).render().endswith("\n --> r.yaml")


@pytest.mark.parametrize(
    ("line", "column", "offset"),
    [("a: x", 4, 3), ("日本: x", 5, 6), ("e\u0301: x", 5, 3), ("\ta: x", 5, 7)],
    ids=["ascii", "wide", "combining", "tab"],
)
def test_the_caret_stands_under_the_token(line: str, column: int, offset: int) -> None:
    rendered = Diagnostic(
        "E007 invalid-value", "m", Span(Source("s", line), 1, column, 1, column + 1)
    ).render()
    assert rendered.splitlines()[-1] == "  | " + " " * offset + "^"


def test_control_characters_do_not_reach_the_terminal() -> None:
    text = "a: \x1b[2J"
    assert "\x1b" not in Diagnostic("E001 invalid-yaml", "m", Span(Source("s", text), 1, 4, 1, 5)).render()


def test_a_span_of_several_lines_is_underlined_on_the_first() -> None:
    span = Span(SOURCE, 2, 1, 3, 20)
    assert span.text == "policy:\n  head: {type: mlp}"
    assert Diagnostic("E005 wrong-type", "m", span).render().splitlines()[-1] == "  | ^^^^^^^"


def test_order_is_by_position_and_each_is_said_once() -> None:
    spans = [
        Span(SOURCE, 3, 1, 3, 2),
        Span(Source("dict"), path="x"),
        Span(SOURCE, 1, 5, 1, 6),
        Span(SOURCE, 1, 2, 1, 3),
    ]
    found = [Diagnostic("E003 unknown-key", "m", span) for span in spans]
    assert [d.span for d in in_order([*found, found[0]])] == [spans[3], spans[2], spans[0], spans[1]]


def test_json_holds_everything() -> None:
    found = Diagnostic("E003 unknown-key", "m", HEAD, "l", ((HEAD, "r"),), ("n",), "h")
    value = json.loads(json.dumps(found.to_json()))
    place = {"source": "r.yaml", "line": 3, "column": 3, "end_line": 3, "end_column": 7, "path": ""}
    assert value == {
        "severity": "error",
        "code": "E003",
        "name": "unknown-key",
        "message": "m",
        "span": place,
        "label": "l",
        "related": [{"span": place, "label": "r"}],
        "notes": ["n"],
        "help": "h",
        "edit": None,
    }


def test_an_error_is_whole_in_another_process() -> None:
    error = RecipeError([Diagnostic("E021 dim-mismatch", "they differ", HEAD, "512 here")])
    copied = pickle.loads(pickle.dumps(error))
    assert (copied.diagnostics, str(copied)) == (error.diagnostics, str(error))
