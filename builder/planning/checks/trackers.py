"""Check of `training.track`: the packages of the trackers."""

from __future__ import annotations

from importlib.util import find_spec

from ....schemas.diagnostics import Diagnostic
from ....schemas.errors import SpecError
from ...recipe.loaded import LoadedRecipe


def tracker_findings(loaded: LoadedRecipe) -> list[Diagnostic]:
    """Return a finding for every tracker whose package, of the same name, is not installed."""
    found = []
    for position, name in enumerate(loaded.sections.training.track):
        if find_spec(name) is None:
            error = SpecError(
                f"the tracker `{name}` is not installed",
                label=f"needs the package `{name}`",
                help="install it with `pip install 'policysmith[tracking]'`, or take it out of `training.track`",
            )
            place = ("training", "track", position)
            found.append(loaded.diagnostic(place, error, code="E014 missing-package"))
    return found


__all__ = ["tracker_findings"]
