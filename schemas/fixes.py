"""Cures of a recipe's text: the edits of findings that have one right answer, comments and layout kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .diagnostics import Diagnostic, Source
from .paths import replace_text
from .yaml.document import Document


def curable(found: Sequence[Diagnostic], source: Source) -> list[Diagnostic]:
    """Return the findings with an edit of this source; of two that overlap, the first."""
    kept: list[Diagnostic] = []
    for each in sorted(found, key=lambda finding: finding.position):
        if each.edit is None or each.span.source != source:
            continue
        if not kept or _end(kept[-1]) <= (each.span.line, each.span.column):
            kept.append(each)
    return kept


def cured(source: Source, found: Sequence[Diagnostic]) -> str:
    """Return the text of a source with the edits of `curable` findings."""
    lines = list(source.lines)
    for each in reversed(found):
        line, span = lines[each.span.line - 1], each.span
        lines[span.line - 1] = f"{line[: span.column - 1]}{each.edit}{line[span.end_column - 1 :]}"
    return "\n".join(lines)


def write_cures(document: Document, path: Path, found: Sequence[Diagnostic]) -> list[Diagnostic]:
    """Write the edits to the recipe's own file, and return the findings that they cure."""
    source = document.root.span.source
    applied = curable(found, source)
    if applied:
        replace_text(path, cured(source, applied))
    return applied


def _end(finding: Diagnostic) -> tuple[int, int]:
    return finding.span.end_line, finding.span.end_column
