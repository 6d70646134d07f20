"""The stages of a composed policy, from a batch of observations to an action chunk."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...components.base import Feature
from ...components.real_time import Prefix
from ..policy.recipe_policy import RecipePolicy

RUNNING = "action_weights"
"""Key of the weights (B, H) of a running chunk, whose actions are the `action` of the batch."""


@dataclass(frozen=True)
class State:
    """Intermediate results of a chunk after some stages."""

    batch: dict[str, Any]
    """Observations, transformed after the first stage."""
    features: dict[str, Feature] = field(default_factory=dict)
    """Features by `<part>.<output>`."""
    actions: Tensor | None = None
    """The chunk (B, H, A), in the robot's units after the last stage."""


class Stages:
    """The transforms, each backbone, each neck, the head, and the inverse of the transforms, in order."""

    def __init__(self, policy: RecipePolicy) -> None:
        self._policy = policy
        backbones = [f"backbones.{name}" for name in policy.backbones]
        necks = [f"necks.{name}" for name in policy.necks]
        self.names = ("transforms", *backbones, *necks, "head", "inverse")
        self.current = 0
        """Index of the stage that ran last."""

    def run(
        self,
        state: State,
        generator: torch.Generator | None = None,
        *,
        first: int = 0,
        end: int | None = None,
    ) -> State:
        """Run the stages from `first` to before `end`, by default all."""
        for index in range(first, len(self.names) if end is None else end):
            self.current = index
            state = self._run(self.names[index], state, generator)
        return state

    def _run(self, name: str, state: State, generator: torch.Generator | None) -> State:
        policy, batch, features = self._policy, state.batch, state.features
        kind, _, part = name.partition(".")
        if kind == "transforms":
            return replace(state, batch=policy.transform(batch))
        if kind == "backbones":
            return replace(state, features={**features, **policy.encode(part, batch)})
        if kind == "necks":
            known = {**policy.robot_features(batch), **features}
            return replace(state, features={**features, **policy.mix(part, known)})
        if kind == "head":
            read = policy.read_by_head(features, batch)
            if RUNNING in batch:
                prefix = Prefix(batch["action"], batch[RUNNING])
                return replace(state, actions=policy.head.inpaint(read, prefix, generator))
            return replace(state, actions=policy.head.sample(read, generator))
        assert state.actions is not None
        return replace(state, actions=policy.restore(state.actions, batch))


__all__ = ["Stages", "State"]
