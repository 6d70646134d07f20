"""A policy composed of parts, on its way from a recipe to a model with initial weights."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, ClassVar

import torch
from torch.utils.data import Dataset

from ..schemas.diagnostics import in_order
from ..schemas.errors import PolicysmithError, RecipeError
from .data.time_steps import TimeSteps
from .fine_tuning.initialization import Initialization
from .fine_tuning.transfer import Transfer
from .planning.checks.environment import environment_findings
from .planning.checks.real_data import check_batch, open_every_file
from .planning.checks.trackers import tracker_findings
from .planning.dry_run import dry_run
from .planning.policy import PolicyPlan, config_content, plan_policy
from .planning.sources import DataPlan, recipe_time_steps
from .planning.summary import Checked
from .policy import MODEL_TYPE, RecipePolicy
from .policy.freezing import freeze
from .policy.registration.named_classes import named_classes
from .recipe.loaded import LoadedRecipe
from .recipe.standalone import standalone


class Composed:
    """Stages of a composed policy. `Handwritten` has the same methods."""

    keyed: ClassVar[bool] = False
    """Its datasets are indexed by `index` alone; the model augments whole batches."""

    def __init__(self, loaded: LoadedRecipe) -> None:
        self._loaded = loaded
        self._plan: PolicyPlan | None = None
        self._checked: Checked | None = None

    def time_steps(self) -> TimeSteps:
        """Return the time steps of its samples."""
        return recipe_time_steps(self._loaded.sections.data)

    def check(self, init: Initialization) -> Checked:
        """Wire the policy and run it on the meta device. Raise RecipeError with every problem."""
        if self._checked is None:
            plan, transfers = self.plan_for(init), list[Transfer | None]()

            def filled(policy: RecipePolicy) -> Collection[str]:
                transfers.append(init.transfer(policy))
                return () if transfers[0] is None else transfers[0].names.keys()

            summary = dry_run(self._loaded, init.data, plan, filled)
            content = config_content(self._loaded, init.data, plan.facts)
            found = [
                *environment_findings(self._loaded, MODEL_TYPE, content),
                *tracker_findings(self._loaded),
            ]
            if found:
                raise RecipeError(in_order(found))
            self._checked = Checked(summary, init.report(transfers[0]), summary.warnings)
        return self._checked

    def check_deep(self, init: Initialization) -> None:
        """Open every video, and take real samples through the policy. Raise RecipeError for what fails."""
        self.check(init)
        open_every_file(self._loaded, init.data)
        check_batch(self._loaded, init.data, self.plan_for(init))

    def build(self, init: Initialization, device: str) -> RecipePolicy:
        """Return the checked policy with its initial weights, in evaluation mode."""
        summary = self.check(init).summary
        assert summary is not None
        policy = assemble(self._loaded, init.data, self.plan_for(init), device, filled=init.filled_backbones)
        init.fill(policy, weights=device != "meta")
        freeze(policy, list(summary.unused))
        return policy

    def dataset(self, samples: Dataset[Any], init: Initialization) -> Dataset[Any]:
        """Return the samples that its collator reads: those of the data itself."""
        return samples

    def plan_for(self, init: Initialization) -> PolicyPlan:
        """Return the wired policy. Raise RecipeError if parts do not fit."""
        if self._plan is None:
            self._plan = plan_policy(self._loaded, init.data, init.facts())
        return self._plan


def assemble(
    loaded: LoadedRecipe,
    data: DataPlan,
    plan: PolicyPlan,
    device: str,
    *,
    filled: Callable[[RecipePolicy], Collection[str]] = lambda policy: (),
) -> RecipePolicy:
    """Return the policy with its initial weights, in evaluation mode; on `meta` without weights.

    `filled` returns the backbones that take all their weights from elsewhere.

    Raises:
        RecipeError: Pretrained weights do not fit.
        RegistryError: The name of the recipe is taken.
    """
    config, model = named_classes(config_content(loaded, data, plan.facts))
    torch.manual_seed(loaded.sections.training.seed)
    with torch.device(device):
        policy: RecipePolicy = model(config())
    if loaded.document.root.span.source.text is not None:
        policy.recipe_text = standalone(loaded.document, located=False)
    policy.directory = loaded.directory
    skipped = filled(policy) if device != "meta" else plan.parts.backbones
    for name, site in plan.parts.backbones.items():
        if name in skipped:
            continue
        try:
            policy.load_pretrained(name)
        except PolicysmithError as error:
            raise RecipeError(
                [loaded.diagnostic(site.location, str(error), code="E024 bad-weights")]
            ) from error
    return policy.eval()


__all__ = ["Composed", "assemble"]
