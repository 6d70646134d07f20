"""Kinds of parts, and types that exist here but that the shipped schema may not know yet: new files and plugins."""

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
"""Every kind of part, and what one of them is called."""

_COMPONENTS = Path(__file__).parent.parent / "components"


def unlisted_types(kind: str) -> list[str]:
    """Names of part files and of entry points of one kind, such as `heads`; imports none of them."""
    from importlib.metadata import entry_points

    files = {path.stem for path in (_COMPONENTS / kind).glob("[a-z]*.py")}
    return sorted(files | {point.name for point in entry_points(group=f"policysmith.{kind}")})
