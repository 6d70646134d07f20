"""Diagnostics: a problem in a recipe, its place and its cure.

    error[E003 unknown-key]: `policy.backbones.vision` has no key `imagesize`
      --> recipes/vit_mlp.yaml:16:5
       |
    16 |     imagesize: 96
       |     ^^^^^^^^^ did you mean `image_size`?
       = help: run `policysmith explain backbones.vit`

Codes never change their meaning; a new kind of mistake gets a new number.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from .terminal import printable

ErrorCode = Literal[
    "E001 invalid-yaml",
    "E002 duplicate-key",
    "E003 unknown-key",
    "E004 missing-key",
    "E005 wrong-type",
    "E006 unknown-type",
    "E007 invalid-value",
    "E008 refused-yaml",
    "E009 unreadable-file",
    "E010 bad-override",
    "E011 import-refused",
    "E012 import-failed",
    "E013 bad-reference",
    "E014 missing-package",
    "E020 bad-wiring",
    "E021 dim-mismatch",
    "E022 missing-input",
    "E023 bad-dataset",
    "E024 bad-weights",
    "E025 unknown-embodiment",
]
WarningCode = Literal[
    "W001 not-normalized",
    "W002 frozen-random-weights",
    "W003 warmup-unfinished",
    "W004 no-effect",
    "W005 epochs",
    "W006 out-of-memory",
    "W007 base-differs",
    "W008 frame-rates",
    "W009 dropped-column",
    "W010 poor-statistics",
    "W011 long-window",
    "W012 large-validation",
]
"""Doubts that do not stop a run; `silence` of a recipe names those to keep quiet."""
Code = ErrorCode | WarningCode

MOST = 100
"""Number of findings after which a stage of checking stops."""

_SHOWN, _BEFORE = 160, 60  # columns of an excerpt, and those kept before a place far to the right
_LONGEST = 1_000  # characters of a message, label, note or help
_RED, _YELLOW, _BLUE, _BOLD, _RESET = "\x1b[1;31m", "\x1b[1;33m", "\x1b[1;34m", "\x1b[1m", "\x1b[0m"
_TAB = "    "


@dataclass(frozen=True)
class Source:
    """A named source of text. `text` is None for values from Python, such as a dict.

    `base_of` is the place in another recipe that names this one as its base.
    """

    name: str
    text: str | None = None
    base_of: Span | None = None

    @cached_property
    def lines(self) -> list[str]:
        return [] if self.text is None else self.text.split("\n")


@dataclass(frozen=True)
class Span:
    """A range of a source, 1-based and end-exclusive. Line 0 means the source as a whole.

    `path` is a dotted path of keys, shown instead of line and column if the source has no text.
    """

    source: Source
    line: int = 0
    column: int = 0
    end_line: int = 0
    end_column: int = 0
    path: str = ""

    @property
    def text(self) -> str:
        """The source text covered by the span; empty if there is none."""
        if not self.line or self.source.text is None:
            return ""
        lines = self.source.lines[self.line - 1 : self.end_line]
        lines[-1] = lines[-1][: self.end_column - 1]
        lines[0] = lines[0][self.column - 1 :]
        return "\n".join(lines)

    def __str__(self) -> str:
        if self.line:
            return f"{self.source.name}:{self.line}:{self.column}"
        return f"{self.source.name}: {self.path}" if self.path else self.source.name

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source.name,
            "line": self.line,
            "column": self.column,
            "end_line": self.end_line,
            "end_column": self.end_column,
            "path": self.path,
        }


@dataclass(frozen=True)
class Diagnostic:
    """One finding.

    Attributes:
        label: Text under the caret.
        related: Further places, each with a label.
        notes: Background, such as the options that exist.
        help: The cure.
        edit: Text that cures it in place of the span, where one answer is right.
    """

    code: Code
    message: str
    span: Span
    label: str = ""
    related: tuple[tuple[Span, str], ...] = ()
    notes: tuple[str, ...] = ()
    help: str = ""
    edit: str | None = None

    @property
    def severity(self) -> Literal["error", "warning"]:
        """`error` if the recipe cannot be trained, `warning` for a doubt."""
        return "error" if self.code.startswith("E") else "warning"

    @property
    def line(self) -> str:
        """The finding in one line, with its place and its cure."""
        cure = f"; {self.help}" if self.help else ""
        return _safe(f"{self.severity}[{self.code}]: {self.message}{cure} ({self.span})")

    @property
    def position(self) -> tuple[int, int, int]:
        """Sort key: the file from top to bottom, then findings without a line."""
        return (0 if self.span.line else 1, self.span.line, self.span.column)

    @property
    def _bases(self) -> tuple[str, ...]:
        """Notes on which recipes name those of the places as their base."""
        sources = dict.fromkeys(span.source for span in (self.span, *(span for span, _ in self.related)))
        return tuple(
            f"{source.name} is a base of {source.base_of}" for source in sources if source.base_of is not None
        )

    def render(self, color: bool = False) -> str:
        """Return the finding as lines of text, without a final newline."""
        spans = [self.span, *(span for span, _ in self.related)]
        paint = _Paint(color, len(str(max(span.line for span in spans))), self.severity)
        lines = [paint.strong(f"{self.severity}[{self.code}]") + paint.bold(f": {_safe(self.message)}")]
        lines += paint.place("-->", self.span, "^", self.label)
        for span, label in self.related:
            lines += paint.place(":::", span, "-", label)
        lines += [paint.remark("note", note) for note in (*self.notes, *self._bases)]
        if self.help:
            lines.append(paint.remark("help", self.help))
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain values, for `--format json`."""
        code, name = self.code.split(" ")
        return {
            "severity": self.severity,
            "code": code,
            "name": name,
            "message": self.message,
            "span": self.span.to_json(),
            "label": self.label,
            "related": [{"span": span.to_json(), "label": label} for span, label in self.related],
            "notes": [*self.notes, *self._bases],
            "help": self.help,
            "edit": self.edit,
        }


def in_order(diagnostics: Sequence[Diagnostic]) -> list[Diagnostic]:
    """Return diagnostics sorted by position, without duplicates."""
    return sorted(dict.fromkeys(diagnostics), key=lambda diagnostic: diagnostic.position)


@dataclass(frozen=True)
class _Paint:
    color: bool
    margin: int
    severity: Literal["error", "warning"] = "error"

    def strong(self, text: str) -> str:
        color = _RED if self.severity == "error" else _YELLOW
        return f"{color}{text}{_RESET}" if self.color else text

    def blue(self, text: str) -> str:
        return f"{_BLUE}{text}{_RESET}" if self.color else text

    def bold(self, text: str) -> str:
        return f"{_BOLD}{text}{_RESET}" if self.color else text

    def remark(self, kind: str, text: str) -> str:
        first, *rest = _safe(text).split("\n")
        indent = " " * (self.margin + len(f" = {kind}: "))
        return "\n".join(
            [f"{self._gutter('=')} {self.bold(f'{kind}:')} {first}", *(indent + line for line in rest)]
        )

    def place(self, arrow: str, span: Span, mark: str, label: str) -> list[str]:
        label = _safe(label)
        lines = [f"{' ' * self.margin}{self.blue(arrow)} {_safe(str(span))}"]
        if not span.line or span.source.text is None:
            return [*lines, f"{self._gutter('|')} {label}"] if label else lines
        excerpt = printable(span.source.lines[span.line - 1], kept="\t")
        begin = span.column - 1
        end = span.end_column - 1 if span.end_line == span.line else len(excerpt.rstrip())
        if len(excerpt) > _SHOWN:
            cut = max(0, begin - _BEFORE) if begin > _SHOWN - _BEFORE else 0
            begin, end = begin - cut, min(end - cut, _SHOWN)
            excerpt = excerpt[cut : cut + _SHOWN]
        offset = _width(excerpt[:begin])
        carets = mark * max(1, _width(excerpt[begin:end]))
        underline = f"{carets} {label}".rstrip()
        painted = self.strong(underline) if mark == "^" else self.blue(underline)
        number = self.blue(f"{span.line:>{self.margin}} |")
        return [
            *lines,
            self._gutter("|"),
            f"{number} {excerpt.rstrip().replace(chr(9), _TAB)}".rstrip(),
            f"{self._gutter('|')} {' ' * offset}{painted}",
        ]

    def _gutter(self, sign: str) -> str:
        return self.blue(f"{' ' * self.margin} {sign}")


def _safe(text: str) -> str:
    """Return a message that is safe to print, elided if it is very long."""
    if len(text) > _LONGEST:
        half = _LONGEST // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return printable(text)


def _width(text: str) -> int:
    """Return the number of terminal columns that a text takes."""
    if text.isascii():
        return len(text.replace("\t", _TAB))
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    combining = sum(bool(unicodedata.combining(character)) for character in text)
    return len(text.replace("\t", _TAB)) + wide - combining
