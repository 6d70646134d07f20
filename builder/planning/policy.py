"""The plan of a composed policy: its parts and every size, checked together before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...schemas.diagnostics import Diagnostic, in_order
from ...schemas.errors import RecipeError
from ...schemas.recipe import ComposedPolicySection
from ...schemas.specs import Spec, Specs
from ..provenance import policy_provenance
from ..recipe import rules
from ..recipe.loaded import LoadedRecipe
from ..wiring.parts import Parts, Problem, Site, WiringError
from ..wiring.solve import Wiring, look_up_facts, wire, with_statistics
from .fit import fit_head
from .sources import DataPlan
from .statistics import measure


@dataclass(frozen=True)
class PolicyPlan:
    """A composed policy, wired."""

    parts: Parts
    facts: dict[str, dict[str, Any]]
    wiring: Wiring

    def sites(self) -> Iterator[tuple[Site, Specs]]:
        """Yield every part of the model, with its inputs."""
        parts, wiring = self.parts, self.wiring
        yield from ((site, wiring.into(index)) for index, site in enumerate(parts.transforms))
        yield from ((site, wiring.reads[name]) for name, site in parts.backbones.items())
        yield from ((parts.necks[name], wiring.into_neck(name)) for name in wiring.necks)
        yield parts.head, {**wiring.features, **wiring.given}


def plan_policy(
    loaded: LoadedRecipe, data: DataPlan, kept: Mapping[str, Mapping[str, Any]] | None = None
) -> PolicyPlan:
    """Wire a composed policy to its data.

    Args:
        loaded: The recipe.
        data: The datasets.
        kept: Facts of transforms and head, by part, that stay as an earlier policy learned them.

    Raises:
        RecipeError: Parts do not fit; it carries every clash, with both of its places.
    """
    kept = kept or {}
    assert isinstance(loaded.sections.policy, ComposedPolicySection)
    assert loaded.head is not None
    parts = Parts(
        collator=Site(("collator",), *loaded.collator),
        transforms=transform_sites(loaded),
        backbones={
            name: Site(("policy", "backbones", name), *part) for name, part in loaded.backbones.items()
        },
        necks={name: Site(("policy", "necks", name), *part) for name, part in loaded.necks.items()},
        head=Site(("policy", "head"), *loaded.head),
    )
    found = rules.chunk_use(loaded, data.time_steps)
    try:
        facts = look_up_facts(parts, loaded.directory)
        readers = [parts.collator, *parts.transforms]
        facts = measure(readers, data.specs, facts, data.statistics, data.numbers)
        for site in readers:
            if "measured" in kept.get(site.key, {}) and "measured" in facts.get(site.key, {}):
                facts[site.key] = {**facts[site.key], "measured": kept[site.key]["measured"]}
        wiring = wire(parts, data.specs, with_statistics(facts, readers, data.statistics))
        if learned := dict(kept.get(parts.head.key, {})) or fit_head(parts, wiring, data):
            facts[parts.head.key] = learned
            wiring = replace(wiring, facts={**wiring.facts, parts.head.key: learned})
    except WiringError as error:
        found += [_with_unread_columns(loaded, problem, data) for problem in error.problems]
        raise RecipeError(in_order(found)) from error
    if found:
        raise RecipeError(found)
    return PolicyPlan(parts, facts, wiring)


def config_content(
    loaded: LoadedRecipe,
    data: DataPlan,
    facts: Mapping[str, Any],
    *,
    recipe: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what the config of a policy records of its making; `recipe` is by default the resolved one."""
    return {
        "recipe": loaded.resolved() if recipe is None else recipe,
        "specs": specs_to_json(data.specs),
        "facts": facts,
        "statistics": data.statistics,
        "robots": data.robots.to_json(),
        "signals": data.signals,
        "provenance": policy_provenance(loaded),
    }


def _with_unread_columns(loaded: LoadedRecipe, problem: Problem, data: DataPlan) -> Diagnostic:
    """Return a wiring problem; if an input is missing, with the columns that could be mapped to it."""
    unread = {key: text for source in data.sources for key, text in source.info.unread.items()}
    if problem.code != "E022 missing-input" or problem.path[:2] != ("policy", "backbones") or not unread:
        return located_problem(loaded, problem)
    columns = ", ".join(f"`{key}` {text}" for key, text in unread.items())
    note = f"the dataset also has {columns}; map them with `data.columns`"
    return replace(located_problem(loaded, problem), notes=(note,))


def transform_sites(loaded: LoadedRecipe) -> list[Site]:
    """Return the transforms of a recipe, in order."""
    return [Site(("transforms", i), *part) for i, part in enumerate(loaded.transforms)]


def located_problem(loaded: LoadedRecipe, problem: Problem) -> Diagnostic:
    """Return a wiring problem as a diagnostic with all its places."""
    return loaded.diagnostic(problem.path, problem.error, code=problem.code, related=problem.also)


def specs_to_json(specs: Mapping[str, Spec]) -> dict[str, Any]:
    """Return specs as `config.json` holds them."""
    return {key: spec.to_json() for key, spec in specs.items()}


__all__ = [
    "PolicyPlan",
    "config_content",
    "located_problem",
    "plan_policy",
    "specs_to_json",
    "transform_sites",
]
