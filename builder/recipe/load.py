"""Loading of a recipe, from YAML to the validated configs of every part.

    loaded = load_recipe("recipes/vit_mlp.yaml", overrides=["training.steps=10"])
    head_class, head_config = loaded.head
    loaded.resolved()                                # every default filled in, JSON values only

The JSON Schema is checked first, then pydantic adds what a schema cannot express; one error reports both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ...components.registry import REGISTRIES
from ...schemas import overrides as override
from ...schemas.check import check
from ...schemas.composition import composed, resolved
from ...schemas.diagnostics import in_order
from ...schemas.errors import RecipeError
from ...schemas.yaml.document import Document, from_mapping, read
from ...schemas.yaml.nodes import KeyPath
from ..policy.registration.registry import policies
from .imports import run_imports
from .init_cameras import with_init_cameras
from .loaded import LoadedRecipe
from .rules import contradictions
from .validate import PartOf, part_sites, validate_part, validate_recipe

RecipeSource = str | PathLike[str] | Mapping[str, Any] | Document


def load_recipe(
    source: RecipeSource,
    *,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    allow_imports: bool = False,
) -> LoadedRecipe:
    """Load a recipe from a file, or from a mapping of the same content.

    Args:
        source: Path, mapping or parsed document.
        overrides: Texts like `training.steps=10`, or a mapping of dotted paths to values.
        allow_imports: Run the files under `imports:`.

    Raises:
        RecipeError: The recipe is wrong; it carries every finding, sorted by position.
    """
    document = resolved(open_document(source, overrides))
    known = {kind: registry.registered for kind, registry in REGISTRIES.items()} | {"policies": policies()}
    found = check(document, allow_imports=allow_imports, known=known)
    failed = run_imports(document) if allow_imports else []
    if failed:
        raise RecipeError(in_order([*found, *failed]))
    sections, problems = validate_recipe(document, already_reported=found)
    found += problems if sections is None else contradictions(document, sections)
    parts: dict[KeyPath, PartOf] = {}
    for kind, path, raw in part_sites(document.value):
        part, problems = validate_part(document, kind, path, raw, already_reported=found)
        found += problems
        if part is not None:
            parts[path] = part
    if found or sections is None:
        raise RecipeError(in_order(found))
    return LoadedRecipe(
        document,
        with_init_cameras(sections),
        collator=parts[("collator",)],
        transforms=[parts[("transforms", position)] for position in range(len(sections.transforms))],
        backbones=_by_name(parts, "backbones"),
        necks=_by_name(parts, "necks"),
        head=parts.get(("policy", "head")),
    )


def open_document(source: RecipeSource, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Document:
    """Parse a recipe and apply overrides, without checking its content. Raise RecipeError if that fails."""
    if isinstance(source, Document):
        document = source
    elif isinstance(source, Mapping):
        document = from_mapping(source)
    else:
        document = read(Path(source))
    document = composed(document)
    if isinstance(overrides, Mapping):
        return override.apply_mapping(document, overrides)
    return override.apply(document, overrides)


def _by_name(parts: Mapping[KeyPath, PartOf], kind: str) -> dict[str, PartOf]:
    return {str(path[-1]): part for path, part in parts.items() if path[:2] == ("policy", kind)}


__all__ = ["RecipeSource", "load_recipe", "open_document"]
