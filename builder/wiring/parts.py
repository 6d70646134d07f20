"""Parts of a recipe, each at its place, and problems with how they fit together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...components.base import Part
from ...components.registry import BACKBONES, COLLATORS, HEADS, NECKS, TRANSFORMS
from ...schemas.diagnostics import ErrorCode
from ...schemas.errors import PolicysmithError, RegistryError, SpecError
from ...schemas.part import PartConfig
from ...schemas.paths import expanded
from ...schemas.specs import Spec
from ...schemas.yaml.nodes import KeyPath, dotted

LOCATIONS = ("pretrained", "architecture", "tokenizer")
"""Options of any part that name a model on the hub, or a path relative to the recipe."""


@dataclass(frozen=True)
class Site:
    """A part at its place in the recipe."""

    path: KeyPath
    part: type[Part]
    config: PartConfig

    @property
    def key(self) -> str:
        """Dotted path: `policy.backbones.vision`."""
        return ".".join(str(step) for step in self.path)

    def resolved_config(self, directory: Path | None) -> PartConfig:
        """Return the config with absolute paths for files that exist in the directory of the recipe."""
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
        """Path of the option that names its files, or of the part itself if it has none."""
        named = [name for name in LOCATIONS if getattr(self.config, name, None) is not None]
        return (*self.path, *named[:1])


@dataclass(frozen=True)
class Parts:
    """Parts of a recipe. Backbones and necks are sorted by name, because `config.json` sorts its keys."""

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
        """Parts that publish features, by name: backbones and necks."""
        return {**self.backbones, **self.necks}

    @classmethod
    def from_resolved(cls, recipe: Mapping[str, Any]) -> Parts:
        """Return the parts of a resolved recipe, as a checkpoint holds it.

        Raise RegistryError for an unknown part.
        """

        def site(registry: Any, path: KeyPath, raw: Mapping[str, Any]) -> Site:
            try:
                part = registry.get(raw["type"])
            except RegistryError as error:
                files = ", ".join(recipe.get("imports") or ())
                cure = f"import `{files}` first, as its recipe does" if files else "install what provides it"
                raise RegistryError(f"`{dotted(path)}` cannot be built: {error}; {cure}") from error
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
    """One misfit; `also` lists the other places of the recipe that are part of it."""

    path: KeyPath
    error: SpecError
    also: Sequence[tuple[KeyPath, str]] = ()
    code: ErrorCode = "E020 bad-wiring"


class WiringError(PolicysmithError, ValueError):
    """Raised when the parts of a recipe do not fit together, with every problem found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{'.'.join(map(str, p.path))}: {p.error}" for p in problems))


def because(spec: Spec) -> str:
    """Return the reason for a spec in parentheses, or an empty string."""
    return f" ({spec.why})" if spec.why else ""


def as_spec_error(error: PolicysmithError) -> SpecError:
    """Return an error as SpecError, with its label and help if it has them."""
    return error if isinstance(error, SpecError) else SpecError(str(error))


__all__ = ["LOCATIONS", "Parts", "Problem", "Site", "WiringError", "as_spec_error", "because"]
