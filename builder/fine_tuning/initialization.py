"""Initial weights of a policy: its own, a trained policy's, or its run's checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...schemas.diagnostics import Diagnostic
from ..planning.sources import DataPlan
from ..policy import BasePolicyModel, RecipePolicy
from ..recipe.loaded import LoadedRecipe
from .base_policy import BasePolicy, KeptStatistics
from .transfer import Transfer


@dataclass(frozen=True)
class Initialization:
    """Initial weights of a policy, and the data with the statistics that belong to them."""

    loaded: LoadedRecipe
    data: DataPlan
    base: BasePolicy | None
    kept: KeptStatistics
    resumed: bool
    """True for a run that continues from its own checkpoint, which then is `base`."""

    @classmethod
    def of(
        cls, loaded: LoadedRecipe, data: DataPlan, base: BasePolicy | None, *, resumed: bool
    ) -> Initialization:
        """Return the initialization from a base policy, if any.

        Raise RecipeError if their dimensions differ in order.
        """
        if base is None:
            return cls(loaded, data, None, KeptStatistics(), resumed)
        base.refuse_other_order(loaded, data)
        data, kept = base.keep_statistics(data)
        return cls(loaded, data, base, kept, resumed)

    def facts(self) -> dict[str, Any]:
        """Return the facts that stay as the base policy learned them, by part."""
        return {} if self.base is None else self.base.kept_facts(self.loaded.resolved(), self.data)

    def transfer(self, policy: BasePolicyModel, *, fill: bool = False) -> Transfer | None:
        """Return what a policy takes of its base, and with `fill` copy it; None for a policy without one."""
        if self.base is None or self.resumed:
            return None
        return self.base.transfer(self.loaded, policy, fill=fill)

    def fill(self, policy: BasePolicyModel, *, weights: bool) -> Transfer | None:
        """Record the start of a new policy in its config, and with `weights` copy those it takes."""
        if self.base is None:
            return None
        provenance = policy.content["provenance"]
        if self.resumed:
            provenance["init"] = self.base.init_provenance
            return None
        transfer = self.transfer(policy, fill=weights)
        kept = {"kept": [*self.kept.kept], "computed": [*self.kept.computed]}
        provenance["init"] = {**self.base.identity, **kept, **(transfer.to_json() if transfer else {})}
        return transfer

    def filled_backbones(self, policy: RecipePolicy) -> set[str]:
        """Return the backbones that take all their weights from the base policy or from a checkpoint."""
        if self.resumed:
            return set(policy.backbones)
        transfer = self.transfer(policy)
        if transfer is None:
            return set()
        untrained = {name.split(".")[1] for name in transfer.untrained if name.startswith("backbones.")}
        return set(policy.backbones) - untrained

    def report(self, transfer: Transfer | None) -> list[str]:
        """Return lines for a person: what is taken and kept."""
        if self.base is None or transfer is None:
            return []
        lines = [f"starts from {self.base.given}: {transfer.summary}", *transfer.lines]
        cameras = [f"{base} {f'is {own}' if own else 'left out'}" for base, own in self.base.cameras.items()]
        lines += [f"  cameras: {', '.join(cameras)}"] if cameras else []
        lines += [f"  statistics kept: {', '.join(self.kept.kept)}"] if self.kept.kept else []
        lines += [f"  statistics of the data: {', '.join(self.kept.computed)}"] if self.kept.computed else []
        return lines

    def doubts(self) -> list[Diagnostic]:
        """Return warnings about differences between a new policy and the one that it starts from."""
        if self.base is None or self.resumed:
            return []
        found = (*self.kept.doubts, *self.base.differences(self.loaded, self.data))
        return [self.loaded.diagnostic(self.base.place, text, code="W007 base-differs") for text in found]


__all__ = ["Initialization"]
