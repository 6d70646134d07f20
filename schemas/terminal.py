"""Text for a terminal: names, paths and values are printed as data, whatever they hold."""

from __future__ import annotations

import io
import sys

_KEPT = "\t\n"


def printable(text: str, kept: str = _KEPT) -> str:
    """Return `text` with every character that could steer a terminal replaced by U+FFFD.

    Control characters, unpaired surrogates and marks that change the direction of writing are replaced; `kept` stays.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else "\ufffd" for c in text)


def forgiving_streams() -> None:
    """Let stdout and stderr write characters that their encoding lacks as escapes (`\\u2192`) instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
