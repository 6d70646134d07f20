"""Statistics of transformed states and actions, for later transforms that normalize.

The dataset's statistics are those of its own values. After a transform that changes them (relative actions,
another representation of rotations), a later one needs the statistics of the values that reach it: all
transforms before it run over the training episodes once, in evaluation mode and without images. Steps of an
action chunk after the end of an episode do not count; of a state, only the latest step does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from ...components.base import Batch, Facts, Transform
from ...components.embodiments import EMBODIMENT, embodiments
from ...schemas.errors import PolicysmithError, SpecError
from ...schemas.specs import Specs
from ..data.statistics import RunningStatistics
from ..wiring.parts import Problem, Site, WiringError

Batches = Callable[[], Iterable[Batch]]


def measure(
    sites: Sequence[Site],
    observations: Specs,
    facts: Mapping[str, dict[str, Any]],
    statistics: Mapping[str, Any],
    batches: Batches,
) -> dict[str, dict[str, Any]]:
    """Return the facts of all parts, with `measured` added to those of transforms that need it.

    `sites` are the collator and the transforms, or the transforms alone. It stops where they do not fit,
    which the wiring reports. Raise WiringError for a transform that fails on numbers alone.
    """
    found = dict(facts)
    specs: Specs = dict(sorted(observations.items()))
    earlier: list[PlacedTransform] = []
    for site in sites:
        part, own = cast(type[Transform], site.part), found.get(site.key, {})
        try:
            keys = part.measures(site.config, specs) if issubclass(part, Transform) else ()
        except PolicysmithError:
            break
        robots = sorted(statistics) if embodiments(observations) is not None else None
        if keys and earlier and (measured := _measured(earlier, keys, batches, robots)):
            own = found[site.key] = {**own, "measured": measured}
        if issubclass(part, Transform):
            own = {**own, "statistics": statistics}
            earlier.append(PlacedTransform(site, specs, own))
        try:
            specs = part.specs(site.config, specs, own)
        except PolicysmithError:
            break
    return found


@dataclass
class PlacedTransform:
    """A transform at its place in the recipe, built when it first runs."""

    site: Site
    inputs: Specs
    facts: Facts
    made: Transform | None = None

    def __call__(self, batch: Batch) -> Batch:
        """Run the transform in evaluation mode. Raise WiringError if it fails with any error."""
        try:
            if self.made is None:
                self.made = cast(Any, self.site.part)(self.site.config, self.inputs, self.facts).eval()
            return cast(Transform, self.made)(batch)  # type: ignore[no-any-return]
        except Exception as error:
            where = f"`{self.site.config.type}` fails on states and actions of the training episodes"
            fault = SpecError(f"{where}: {type(error).__name__}: {error}")
            raise WiringError([Problem(self.site.path, fault)]) from error


@torch.no_grad()
def _measured(
    earlier: Sequence[PlacedTransform], keys: Collection[str], batches: Batches, robots: Sequence[str] | None
) -> dict[str, Any]:
    """Return the statistics of changed values, by key; for several robots, by name and key."""
    sums: dict[str | None, dict[str, RunningStatistics]] = {}
    for given in batches():
        current = given
        for transform in earlier:
            current = transform(current)
        robot = None if robots is None else robots[int(given[EMBODIMENT][0])]
        if robot not in sums:
            changed = [k for k in keys if k in current and current[k] is not given.get(k)]
            sums[robot] = {key: RunningStatistics() for key in changed}
        if not sums[robot]:
            break
        for key, running in sums[robot].items():
            values = current[key]
            running.add((values[~current["action_is_pad"]] if key == "action" else values[:, -1]).numpy())
    found = {
        robot: {key: running.result() for key, running in own.items()} for robot, own in sums.items() if own
    }
    return found.get(None, {}) if robots is None else {str(robot): own for robot, own in found.items()}


__all__ = ["PlacedTransform", "measure"]
