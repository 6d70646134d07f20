"""Findings for programs: JSON, SARIF 2.1.0 and annotations of GitHub Actions.

https://docs.oasis-open.org/sarif/sarif/v2.1.0
https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from .diagnostics import Diagnostic, Span

FORMATS = ("json", "sarif", "github")
_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def as_json(found: Sequence[Diagnostic]) -> str:
    """Return findings as a JSON list."""
    return json.dumps([each.to_json() for each in found], indent=1) + "\n"


def as_github(found: Sequence[Diagnostic]) -> str:
    """Return findings as workflow commands, one line each, which GitHub shows beside the lines of a change."""
    return "".join(f"{_command(each)}\n" for each in found)


def as_sarif(found: Sequence[Diagnostic]) -> str:
    """Return findings as a SARIF log, with the page of each code."""
    from .questions.codes import PAGES

    codes = sorted({each.code for each in found})
    rules = [
        {
            "id": code.split(" ")[0],
            "name": code.split(" ")[1],
            "shortDescription": {"text": PAGES[code].cause},
            "help": {"text": PAGES[code].cure},
        }
        for code in codes
    ]
    tool = {"driver": {"name": "policysmith", "rules": rules}}
    results = [_result(each, codes.index(each.code)) for each in found]
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [{"tool": tool, "results": results}]}
    return json.dumps(log, indent=1) + "\n"


def _result(finding: Diagnostic, rule: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.code.split(" ")[0],
        "ruleIndex": rule,
        "level": finding.severity,
        "message": {"text": _message(finding)},
        "locations": [_location(finding.span)],
    }
    if finding.related:
        result["relatedLocations"] = [
            {**_location(span), "message": {"text": label}} for span, label in finding.related
        ]
    if finding.edit is not None:
        change = {"deletedRegion": _region(finding.span), "insertedContent": {"text": finding.edit}}
        place = _location(finding.span)["physicalLocation"]["artifactLocation"]
        result["fixes"] = [{"artifactChanges": [{"artifactLocation": place, "replacements": [change]}]}]
    return result


def _location(span: Span) -> dict[str, Any]:
    place: dict[str, Any] = {"artifactLocation": {"uri": PurePath(span.source.name).as_posix()}}
    if span.line and span.source.text is not None:
        place["region"] = _region(span)
    return {"physicalLocation": place}


def _region(span: Span) -> dict[str, int]:
    return {
        "startLine": span.line,
        "startColumn": span.column,
        "endLine": span.end_line,
        "endColumn": span.end_column,
    }


def _command(finding: Diagnostic) -> str:
    span = finding.span
    values = {"file": span.source.name, "title": finding.code}
    if span.line:
        values |= {"line": str(span.line), "col": str(span.column)}
        values |= {"endLine": str(span.end_line), "endColumn": str(span.end_column)}
    properties = ",".join(f"{key}={_escaped(value, ',:')}" for key, value in values.items())
    return f"::{finding.severity} {properties}::{_escaped(_message(finding))}"


def _message(finding: Diagnostic) -> str:
    return "; ".join(filter(None, (finding.message, finding.label, finding.help)))


def _escaped(text: str, more: str = "") -> str:
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
