"""Observations that cannot be learned from: dropped if nothing reads them, refused otherwise."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from ....schemas.diagnostics import Diagnostic, in_order
from ....schemas.errors import RecipeError, SpecError
from ....schemas.yaml.nodes import KeyPath
from ...recipe.loaded import LoadedRecipe
from ...wiring.parts import Parts
from ...wiring.solve import required_keys
from ..policy import plan_policy
from ..sources import DataPlan


def without_unusable(loaded: LoadedRecipe, data: DataPlan) -> DataPlan:
    """Return the data without its unusable columns (see `statistics.unusable`).

    A hand-written policy may read every column.

    Raises:
        RecipeError: Such a column is read.
    """
    bad = {key: where for source in data.sources for key, where in source.unusable.items()}
    if not bad:
        return data
    if loaded.head is None:
        raise RecipeError(_faults(loaded, data, dict.fromkeys(bad, ("policy", "type"))))
    plan = plan_policy(loaded, data)
    read = required_keys(plan.parts, plan.wiring) & bad.keys()
    usable = data.without(bad.keys() - read)
    if not read:
        try:
            plan_policy(loaded, usable)
        except RecipeError as error:  # a transform or the collator cannot do without one of them
            raise RecipeError(_faults(loaded, data, dict.fromkeys(bad))) from error
    else:
        raise RecipeError(_faults(loaded, data, _readers(plan.parts, plan.wiring.reads, read)))
    dropped = tuple(
        ((*source.place, "path"), f"`{key}` is dropped, as nothing reads it: {where}")
        for source in data.sources
        for key, where in source.unusable.items()
    )
    return replace(usable, dropped=dropped)


def _readers(
    parts: Parts, reads: Mapping[str, Collection[str]], keys: Collection[str]
) -> dict[str, KeyPath | None]:
    """Return the place of a backbone that reads each key, or None if only a transform does."""
    return {
        key: next((parts.backbones[name].path for name, inputs in reads.items() if key in inputs), None)
        for key in keys
    }


def _faults(loaded: LoadedRecipe, data: DataPlan, readers: Mapping[str, KeyPath | None]) -> list[Diagnostic]:
    found = []
    for source in data.sources:
        for key, where in source.unusable.items():
            if key not in readers:
                continue
            place = ".".join(map(str, source.place))
            fault = SpecError(
                where,
                label="cannot be learned from",
                help=f"repair or leave out the episodes, name only other columns under `reads` and `keys`, or leave this one "
                f"out, `columns: {{{key}: null}}` below `{place}`",
            )
            reader = readers[key]
            related = [] if reader is None else [(reader, f"reads `{key}`")]
            found.append(loaded.diagnostic(source.place, fault, code="E023 bad-dataset", related=related))
    return in_order(found)


__all__ = ["without_unusable"]
