"""Safe text for a terminal, whatever names, paths and values contain."""

from __future__ import annotations

import io
import sys

_KEPT = "\t\n"


def printable(text: str, kept: str = _KEPT) -> str:
    """Return `text` with control characters, lone surrogates and bidirectional marks replaced by U+FFFD.

    Characters in `kept` stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else "\ufffd" for c in text)


def forgiving_streams() -> None:
    r"""Make stdout and stderr escape characters that their encoding lacks (`\u2192`) instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
