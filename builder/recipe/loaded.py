"""`LoadedRecipe`: a recipe that passed every check, with the configs of its parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ...schemas.diagnostics import Code, Diagnostic
from ...schemas.errors import SpecError
from ...schemas.part import PartConfig
from ...schemas.recipe import Recipe
from ...schemas.yaml.document import Document
from ...schemas.yaml.nodes import KeyPath
from .standalone import same_spelling
from .validate import PartOf, located


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe: its sections, and each part as a pair of its class and its validated config."""

    document: Document
    sections: Recipe
    collator: PartOf
    transforms: list[PartOf] = field(default_factory=list)
    backbones: dict[str, PartOf] = field(default_factory=dict)
    """Empty for a hand-written policy."""
    necks: dict[str, PartOf] = field(default_factory=dict)
    head: PartOf | None = None
    """None for a hand-written policy."""
    resumed: tuple[Mapping[str, Any], Path] | None = None
    """Resolved recipe of the run to resume, and its directory; its paths stay if they name the same files."""

    @property
    def directory(self) -> Path:
        """Directory that relative paths start from: the recipe's own, or the working directory."""
        return self.document.directory

    def resolved(self) -> dict[str, Any]:
        """Return the recipe with every default filled in, as JSON values; it loads as the same recipe."""
        value: dict[str, Any] = self.sections.model_dump(mode="json")
        value["collator"] = _dump(self.collator)
        value["transforms"] = [_dump(pair) for pair in self.transforms]
        if self.head is not None:
            value["policy"]["backbones"] = {name: _dump(pair) for name, pair in self.backbones.items()}
            value["policy"]["necks"] = {name: _dump(pair) for name, pair in self.necks.items()}
            value["policy"]["head"] = _dump(self.head)
        return value if self.resumed is None else same_spelling(value, self.directory, *self.resumed)

    @cached_property
    def origin(self) -> Path:
        """Directory that relative paths of `resolved()` start from."""
        plain = replace(self, resumed=None).resolved()
        return self.directory if self.resumed is None or self.resolved() == plain else self.resumed[1]

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the resolved recipe."""
        text = json.dumps(self.resolved(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def diagnostic(
        self,
        path: KeyPath,
        error: SpecError | str,
        *,
        code: Code = "E020 bad-wiring",
        related: Sequence[tuple[KeyPath, str]] = (),
        notes: Sequence[str] = (),
    ) -> Diagnostic:
        """Return a finding about the part or value at `path`, or at the `field` of a SpecError below it."""
        return located(self.document, path, error, code=code, related=related, notes=notes)


def _dump(part: PartOf) -> dict[str, Any]:
    config: PartConfig = part[1]
    return config.model_dump(mode="json")


__all__ = ["LoadedRecipe"]
