"""Explanations of YAML syntax errors for authors of recipes."""

from __future__ import annotations

from collections.abc import Callable

from ruamel.yaml.error import MarkedYAMLError

from ..diagnostics import Diagnostic, Span


def explain(error: MarkedYAMLError, text: str, span: Callable[[int, int], Span]) -> Diagnostic:
    """Return the diagnostic of a syntax error; `span` turns two offsets into a place."""
    problem = str(error.problem or error.context or "the text cannot be parsed")
    mark = error.problem_mark or error.context_mark
    at = min(mark.index, len(text)) if mark is not None else 0
    place = span(at, at + 1)
    if text[at : at + 1] == "\t":
        return Diagnostic("E001 invalid-yaml", "tabs cannot indent YAML", place, "use spaces")
    if "mapping values are not allowed" in problem:
        help = "quote values that contain `: `; put every key on its own line, indented like its neighbors"
        return Diagnostic("E001 invalid-yaml", "unexpected `:` after a value", place, "unexpected", help=help)
    opened = error.context_mark
    if "<block end>" in problem:
        above = len(text[: text.rfind("\n", 0, at) + 1].rstrip())
        line = text.rfind("\n", 0, above) + 1
        start = line + len(text[line:above]) - len(text[line:above].lstrip())
        related = ((span(start, start + 1), "the line above starts here"),) if above else ()
        return Diagnostic(
            "E001 invalid-yaml", "this indentation matches no line above", place, "starts here", related
        )
    if opened is not None and "flow" in str(error.context):
        bracket = text[opened.index : opened.index + 1]
        closing = {"[": "]", "{": "}"}.get(bracket, "")
        if closing:
            message = f"`{bracket}` is never closed, or a comma is missing"
            related = ((place, f"expected `,` or `{closing}` here"),) if at < len(text.rstrip()) else ()
            here = span(opened.index, opened.index + 1)
            return Diagnostic("E001 invalid-yaml", message, here, "opened here", related)
    if opened is not None and "quoted scalar" in str(error.context):
        here = span(opened.index, opened.index + 1)
        return Diagnostic("E001 invalid-yaml", "this quote is never closed", here, "opened here")
    if opened is not None and "expected ':'" in problem:
        key = text[opened.index :].partition("\n")[0].rstrip()
        here = span(opened.index, opened.index + len(key))
        return Diagnostic("E001 invalid-yaml", "a key needs a colon behind it", here, f"write `{key}:`")
    return Diagnostic("E001 invalid-yaml", f"invalid YAML: {problem}", place)
