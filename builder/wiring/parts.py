"""The parts that a recipe names, each at its place, and what can be wrong with how they fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...components.base import Part
from ...components.registry import BACKBONES, COLLATORS, HEADS, NECKS, TRANSFORMS
from ...schemas.diagnostics import ErrorCode
from ...schemas.errors import PolicysmithError, RegistryError, SpecError
from ...schemas.nodes import KeyPath, dotted
from ...schemas.part import PartConfig
from ...schemas.paths import expanded
from ...schemas.specs import Spec

LOCATIONS = ("pretrained", "architecture", "tokenizer")
"""Options of any part that name a model on the hub, a file or a directory; relative ones start at the recipe."""


@dataclass(frozen=True)
class Site:
    """A part at its place in the recipe."""

    path: KeyPath
    part: type[Part]
    config: PartConfig

    @property
    def key(self) -> str:
        """The path, dotted: `policy.backbones.vision`."""
        return ".".join(str(step) for step in self.path)

    def opened(self, directory: Path | None) -> PartConfig:
        """The config to open files with: what lies in the recipe's directory is spelled out from there."""
        if directory is None:
            return self.config
        found = {}
        for name in LOCATIONS:
            value = getattr(self.config, name, None)
            if isinstance(value, str) and (place := directory / expanded(value)).exists():
                found[name] = str(place.resolve())
        return self.config.model_copy(update=found)

    @property
    def location(self) -> KeyPath:
        """Path of the option that names its files, or its own where it has none."""
        named = [name for name in LOCATIONS if getattr(self.config, name, None) is not None]
        return (*self.path, *named[:1])


@dataclass(frozen=True)
class Parts:
    """The parts a recipe names. Backbones and necks are in the order of their names: `config.json` sorts its keys."""

    collator: Site
    transforms: Sequence[Site]
    backbones: Mapping[str, Site]
    necks: Mapping[str, Site]
    head: Site

    def __post_init__(self) -> None:
        for kind in ("backbones", "necks"):
            object.__setattr__(self, kind, dict(sorted(getattr(self, kind).items())))

    @property
    def sources(self) -> dict[str, Site]:
        """Backbones and necks, which publish features, by name."""
        return {**self.backbones, **self.necks}

    @classmethod
    def from_resolved(cls, recipe: Mapping[str, Any]) -> Parts:
        """The parts of a resolved recipe, as a checkpoint holds it. Raises RegistryError for one nothing provides."""

        def site(registry: Any, path: KeyPath, raw: Mapping[str, Any]) -> Site:
            try:
                part = registry.get(raw["type"])
            except RegistryError as error:
                files = ", ".join(recipe.get("imports") or ())
                cure = f"import `{files}` first, as its recipe does" if files else "install what provides it"
                raise RegistryError(f"`{dotted(path)}` cannot be made: {error}; {cure}") from error
            return Site(path, part, part.Config.model_validate(raw))

        policy = recipe["policy"]
        return cls(
            site(COLLATORS, ("collator",), recipe["collator"]),
            [site(TRANSFORMS, ("transforms", i), raw) for i, raw in enumerate(recipe["transforms"])],
            {n: site(BACKBONES, ("policy", "backbones", n), raw) for n, raw in policy["backbones"].items()},
            {n: site(NECKS, ("policy", "necks", n), raw) for n, raw in policy.get("necks", {}).items()},
            site(HEADS, ("policy", "head"), policy["head"]),
        )

    def __iter__(self) -> Iterator[Site]:
        yield self.collator
        yield from self.transforms
        yield from self.backbones.values()
        yield from self.necks.values()
        yield self.head


@dataclass(frozen=True)
class Problem:
    """One thing that does not fit; `also` lists other places of the recipe that take part in it."""

    path: KeyPath
    error: SpecError
    also: Sequence[tuple[KeyPath, str]] = ()
    code: ErrorCode = "E020 bad-wiring"


class WiringError(PolicysmithError, ValueError):
    """The parts do not fit together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{'.'.join(map(str, p.path))}: {p.error}" for p in problems))


def because(spec: Spec) -> str:
    return f" ({spec.why})" if spec.why else ""


def as_spec_error(error: PolicysmithError) -> SpecError:
    return error if isinstance(error, SpecError) else SpecError(str(error))


__all__ = ["LOCATIONS", "Parts", "Problem", "Site", "WiringError", "as_spec_error", "because"]
