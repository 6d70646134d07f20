"""Semantic difference of two recipes, runs or checkpoints: values that differ once every default is filled in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..composition import composed, resolved, with_absolute_paths
from ..errors import CheckpointError
from ..origins import origin_of, origins
from ..paths import expanded
from ..yaml.document import read
from ..yaml.nodes import Key, KeyPath, dotted
from .defaults import with_defaults


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a recipe in full, and the place that sets each value."""

    recipe: Mapping[str, Any]
    origins: Mapping[str, str]


@dataclass(frozen=True)
class Difference:
    """A value that differs.

    Attributes:
        path: Place of the value in both recipes.
        values: The value on the left and on the right; absent on a side that has none.
        origins: Places that set them, or `default`.
    """

    path: KeyPath
    values: Mapping[str, Any]
    origins: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {"path": dotted(self.path), "values": dict(self.values), "origins": dict(self.origins)}

    def __str__(self) -> str:
        shown = {side: json.dumps(value, ensure_ascii=False) for side, value in self.values.items()}
        if len(shown) == 1:
            ((side, text),) = shown.items()
            return f"{dotted(self.path)}: only {side}: {text}  ({self.origins[side]})"
        origins = " -> ".join(self.origins.values())
        return f"{dotted(self.path)}: {shown['left']} -> {shown['right']}  ({origins})"


def side(path: Path) -> Side:
    """Read a recipe file, a run or a checkpoint.

    Raises:
        RecipeError: The recipe is invalid YAML, or a base or reference is wrong.
        CheckpointError: The directory is neither a run nor a checkpoint.
    """
    path = expanded(path)
    if not path.is_dir():
        document = with_absolute_paths(resolved(composed(read(path))))
        return Side(with_defaults(document.value), origins(document))
    for config in (path / "policy" / "config.json", path / "config.json"):
        if config.is_file():
            return _stored(config)
    raise CheckpointError(
        f"{path} holds neither a run nor a checkpoint; name a recipe, a run or a checkpoint"
    )


def differences(left: Side, right: Side) -> list[Difference]:
    """Return the values that differ, in the order of the left recipe."""

    def compare(path: KeyPath, values: Mapping[str, Any]) -> Iterator[Difference]:
        one, other = values.get("left"), values.get("right")
        if len(values) == 2 and isinstance(one, dict) and isinstance(other, dict):
            if one.get("type") == other.get("type"):
                for key in dict.fromkeys((*one, *other)):
                    yield from compare((*path, key), _both(one, other, key))
                return
        elif (
            len(values) == 2 and isinstance(one, list) and isinstance(other, list) and len(one) == len(other)
        ):
            for index, pair in enumerate(zip(one, other, strict=True)):
                yield from compare((*path, index), dict(zip(("left", "right"), pair, strict=True)))
            return
        if len(values) == 1 or one != other:
            sides = {"left": left, "right": right}
            yield Difference(path, values, {name: origin_of(path, sides[name].origins) for name in values})

    return list(compare((), {"left": dict(left.recipe), "right": dict(right.recipe)}))


def _both(one: Mapping[str, Any], other: Mapping[str, Any], key: Key) -> dict[str, Any]:
    sides = {"left": one, "right": other}
    return {name: held[str(key)] for name, held in sides.items() if key in held}


def _stored(config: Path) -> Side:
    """Return the recipe of a policy, and its origins below the path of its config."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        held = content.get("policysmith", content)
        if isinstance(held["recipe"], dict):
            places = (held.get("provenance") or {}).get("origins", {})  # absent in 0.2
            named = {path: f"{config.parent}: {place}" for path, place in places.items()}
            return Side(held["recipe"], named or {"": str(config)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise CheckpointError(f"{config} holds no recipe of a policy; name a recipe, a run or a checkpoint")
