"""Kinds of parts, and types that the shipped schema may not list yet: new files and plugins."""

from __future__ import annotations

from pathlib import Path

KINDS = {
    "backbones": "backbone",
    "necks": "neck",
    "heads": "head",
    "networks": "network",
    "transforms": "transform",
    "collators": "collator",
}
"""Kinds of parts, each with its noun in the singular."""

_COMPONENTS = Path(__file__).parent.parent / "components"


def unlisted_types(kind: str) -> list[str]:
    """Return the part files and entry points of one kind, such as `heads`, without importing them."""
    from importlib.metadata import entry_points

    files = {path.stem for path in (_COMPONENTS / kind).glob("[a-z]*.py")}
    return sorted(files | {point.name for point in entry_points(group=f"policysmith.{kind}")})
