"""From a YAML recipe to validated configs of every part.

    loaded = load_recipe("recipes/vit_mlp.yaml", overrides=["training.steps=10"])
    head_class, head_config = loaded.head
    loaded.resolved()                                # every default filled in, JSON values only

The JSON Schema speaks first, then pydantic adds what a schema cannot say. Both are heard before anything is raised.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from ...components.registry import REGISTRIES
from ...schemas import overrides as override
from ...schemas.check import check
from ...schemas.diagnostics import Diagnostic, ErrorCode, in_order
from ...schemas.document import Document, from_mapping, read
from ...schemas.errors import RecipeError, SpecError
from ...schemas.nodes import KeyPath
from ...schemas.part import PartConfig
from ...schemas.recipe import Recipe
from ..policy.registry import policies
from .imports import run_imports
from .validate import Pair, contradictions, located, part_sites, validate_part, validate_recipe

Source = str | PathLike[str] | Mapping[str, Any] | Document


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe. Parts are pairs of their class and its validated config."""

    document: Document
    recipe: Recipe
    collator: Pair
    transforms: list[Pair] = field(default_factory=list)
    backbones: dict[str, Pair] = field(default_factory=dict)
    """Empty for a hand-written policy."""
    necks: dict[str, Pair] = field(default_factory=dict)
    head: Pair | None = None
    """None for a hand-written policy."""

    @property
    def directory(self) -> Path:
        """What relative paths of the recipe start from: its own directory, or the working directory."""
        return self.document.directory

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default filled in, as JSON values; loading it gives the same recipe again."""
        value: dict[str, Any] = self.recipe.model_dump(mode="json")
        value["collator"] = _dump(self.collator)
        value["transforms"] = [_dump(pair) for pair in self.transforms]
        if self.head is not None:
            value["policy"]["backbones"] = {name: _dump(pair) for name, pair in self.backbones.items()}
            value["policy"]["necks"] = {name: _dump(pair) for name, pair in self.necks.items()}
            value["policy"]["head"] = _dump(self.head)
        return value

    @cached_property
    def sha256(self) -> str:
        """Digest of the resolved recipe."""
        text = json.dumps(self.resolved(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def diagnostic(
        self,
        path: KeyPath,
        error: SpecError | str,
        *,
        code: ErrorCode = "E020 bad-wiring",
        related: Sequence[tuple[KeyPath, str]] = (),
        notes: Sequence[str] = (),
    ) -> Diagnostic:
        """A finding about the part or value at `path`; a SpecError's `field` is looked up below it."""
        return located(self.document, path, error, code=code, related=related, notes=notes)


def load_recipe(
    source: Source,
    *,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    allow_imports: bool = False,
) -> LoadedRecipe:
    """Load a recipe from a file, or from a mapping of the same content.

    `overrides` are texts like `training.steps=10`, or a mapping of dotted paths to values. Raises RecipeError with
    every finding, sorted by position.
    """
    document = open_document(source, overrides)
    known = {kind: registry.registered for kind, registry in REGISTRIES.items()} | {"policies": policies()}
    found = check(document, allow_imports=allow_imports, known=known)
    failed = run_imports(document) if allow_imports else []
    if failed:
        raise RecipeError(in_order([*found, *failed]))
    recipe, problems = validate_recipe(document, heard=found)
    found += problems if recipe is None else contradictions(document, recipe)
    parts: dict[KeyPath, Pair] = {}
    for kind, path, raw in part_sites(document.value):
        pair, problems = validate_part(document, kind, path, raw, heard=found)
        found += problems
        if pair is not None:
            parts[path] = pair
    if found or recipe is None:
        raise RecipeError(in_order(found))
    return LoadedRecipe(
        document,
        recipe,
        collator=parts[("collator",)],
        transforms=[parts[("transforms", position)] for position in range(len(recipe.transforms))],
        backbones=_named(parts, "backbones"),
        necks=_named(parts, "necks"),
        head=parts.get(("policy", "head")),
    )


def open_document(source: Source, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Document:
    """Parse a recipe and apply overrides, without judging what it says. Raises RecipeError."""
    if isinstance(source, Document):
        document = source
    elif isinstance(source, Mapping):
        document = from_mapping(source)
    else:
        document = read(Path(source))
    if isinstance(overrides, Mapping):
        return override.apply_mapping(document, overrides)
    return override.apply(document, overrides)


def _named(parts: Mapping[KeyPath, Pair], kind: str) -> dict[str, Pair]:
    return {str(path[-1]): pair for path, pair in parts.items() if path[:2] == ("policy", kind)}


def _dump(pair: Pair) -> dict[str, Any]:
    config: PartConfig = pair[1]
    return config.model_dump(mode="json")
