"""Check of the `evaluation` section against the policy, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....schemas.diagnostics import Diagnostic
from ....schemas.errors import SimulatorError, SpecError
from ...recipe.loaded import LoadedRecipe
from ...saved_policy import SavedPolicy
from ...simulation.base import describe
from .compatibility import Scene, check_scene, needs_of


def environment_findings(
    loaded: LoadedRecipe, model_type: str, content: Mapping[str, Any]
) -> list[Diagnostic]:
    """Return findings if the environment is unknown, or does not fit the policy in `content`."""
    section = loaded.sections.evaluation
    if section is None:
        return []
    place = ("evaluation", "env")
    try:
        scene = Scene.of(describe(section.env))
    except SimulatorError as error:
        return [loaded.diagnostic(place, str(error), code="E007 invalid-value")]
    try:
        needs = needs_of(SavedPolicy(Path(), model_type, content), section.embodiment)
        _ = needs.image_size  # raises for images that simulators cannot render
        check_scene(needs, scene)
    except SpecError as error:
        return [loaded.diagnostic(place, error)]
    return []


__all__ = ["environment_findings"]
