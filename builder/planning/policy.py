"""From a loaded recipe to a plan: parts and every size, checked together before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...schemas.diagnostics import Diagnostic, in_order
from ...schemas.errors import RecipeError, SpecError
from ...schemas.recipe import ComposedPolicySection
from ...schemas.specs import Spec, Specs
from ..recipe.load import LoadedRecipe
from ..wiring.parts import Parts, Problem, Site, WiringError
from ..wiring.solve import Wiring, look_up, wire, with_statistics
from .fit import fit
from .sources import DataPlan
from .statistics import measure


@dataclass(frozen=True)
class PolicyPlan:
    """A composed policy, wired."""

    parts: Parts
    facts: dict[str, dict[str, Any]]
    wiring: Wiring

    def sites(self) -> Iterator[tuple[Site, Specs]]:
        """Every part with weights or a transform to run, and its inputs."""
        parts, wiring = self.parts, self.wiring
        yield from ((site, wiring.into(index)) for index, site in enumerate(parts.transforms))
        yield from ((site, wiring.reads[name]) for name, site in parts.backbones.items())
        yield from ((parts.necks[name], wiring.into_neck(name)) for name in wiring.necks)
        yield parts.head, {**wiring.features, **wiring.given}


def plan_policy(
    loaded: LoadedRecipe, data: DataPlan, held: Mapping[str, Mapping[str, Any]] | None = None
) -> PolicyPlan:
    """Wire a composed policy to its data. Raises RecipeError with every clash, at both of its places.

    `held` are facts of transforms and head, by part, that an earlier policy learned from its data and that stay.
    """
    held = held or {}
    assert isinstance(loaded.recipe.policy, ComposedPolicySection)
    assert loaded.head is not None
    parts = Parts(
        collator=Site(("collator",), *loaded.collator),
        transforms=transform_sites(loaded),
        backbones={
            name: Site(("policy", "backbones", name), *pair) for name, pair in loaded.backbones.items()
        },
        necks={name: Site(("policy", "necks", name), *pair) for name, pair in loaded.necks.items()},
        head=Site(("policy", "head"), *loaded.head),
    )
    found = check_execute(loaded, data.windows.actions)
    try:
        facts = look_up(parts, loaded.directory)
        way = [parts.collator, *parts.transforms]
        facts = measure(way, data.specs, facts, data.statistics, data.numbers)
        for site in way:
            if "measured" in held.get(site.key, {}) and "measured" in facts.get(site.key, {}):
                facts[site.key] = {**facts[site.key], "measured": held[site.key]["measured"]}
        wiring = wire(parts, data.specs, with_statistics(facts, way, data.statistics))
        if learned := dict(held.get(parts.head.key, {})) or fit(parts, wiring, data):
            facts[parts.head.key] = learned
            wiring = replace(wiring, facts={**wiring.facts, parts.head.key: learned})
    except WiringError as error:
        found += [_located(loaded, problem, data) for problem in error.problems]
        raise RecipeError(in_order(found)) from error
    if found:
        raise RecipeError(found)
    return PolicyPlan(parts, facts, wiring)


def _located(loaded: LoadedRecipe, problem: Problem, data: DataPlan) -> Diagnostic:
    """A wiring problem; where an input is missing, with the columns that could be mapped to it."""
    unread = {key: text for source in data.sources for key, text in source.info.unread.items()}
    if problem.code != "E022 missing-input" or problem.path[:2] != ("policy", "backbones") or not unread:
        return locate(loaded, problem)
    listed = ", ".join(f"`{key}` {text}" for key, text in unread.items())
    return replace(
        locate(loaded, problem), notes=(f"the dataset also has {listed}; map them by `data.columns`",)
    )


def transform_sites(loaded: LoadedRecipe) -> list[Site]:
    """The transforms of a recipe, in order."""
    return [Site(("transforms", i), *pair) for i, pair in enumerate(loaded.transforms)]


def check_execute(loaded: LoadedRecipe, steps: Sequence[int]) -> list[Diagnostic]:
    """Findings where a chunk of such steps has fewer actions than are executed, or too many to average their predictions."""
    policy = loaded.recipe.policy
    found = []
    horizon, past = len(steps), sum(step < 0 for step in steps)
    if policy.execute is not None and policy.execute > horizon - past:
        lost = f", of which {past} lie{'s' if past == 1 else ''} in the past" if past else ""
        error = SpecError(
            f"cannot execute {policy.execute} actions of a chunk of {horizon}{lost}",
            label=f"a chunk has {horizon - past}",
            help="lower `policy.execute` or raise `data.horizon`",
        )
        given = "horizon" in loaded.recipe.data.model_fields_set
        related = [(("data", "horizon"), f"{horizon} actions")] if given else []
        found.append(
            loaded.diagnostic(("policy", "execute"), error, code="E021 dim-mismatch", related=related)
        )
    if policy.ensemble is not None and policy.execute != 1:
        executed = f"executes {policy.execute}" if policy.execute is not None else "executes whole chunks"
        error = SpecError(
            f"temporal ensembling needs a prediction at every step, but the policy {executed}",
            label="predictions do not overlap",
            help="set `policy.execute: 1`",
        )
        related = [] if policy.execute is None else [(("policy", "execute"), f"{policy.execute} actions")]
        found.append(loaded.diagnostic(("policy", "ensemble"), error, related=related))
    return found


def locate(loaded: LoadedRecipe, problem: Problem) -> Diagnostic:
    """A wiring problem as a diagnostic with all its places."""
    return loaded.diagnostic(problem.path, problem.error, code=problem.code, related=problem.also)


def specs_to_json(specs: Mapping[str, Spec]) -> dict[str, Any]:
    """Specs as `config.json` holds them."""
    return {key: spec.to_json() for key, spec in specs.items()}
