"""Actions told relative to where the robot is: the state that they start from, and what it is to each dimension."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.part import PartConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Batch, Facts, Transform
from .specs import changed, columns, refuse_normalised, vector


class ReferenceConfig(PartConfig):
    """Options of transforms that tell actions relative to the state."""

    state: str = "observation.state"
    """The state that holds where the robot is, in the units of the action."""


class ReferenceTransform(Transform):
    """Rewrites the action by the latest step of a state, and back.

    The state is kept in the batch as `action_reference.<key>` (B, S), so that the inverse finds it as it was, whatever
    later transforms make of it, and whether or not a backbone reads it.
    """

    Config: ClassVar[type[PartConfig]] = ReferenceConfig

    def __init__(self, config: Any, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._key = f"action_reference.{config.state}"

    @classmethod
    def needs(cls, config: Any, inputs: Specs) -> Collection[str]:
        return [config.state]

    @classmethod
    def specs(cls, config: Any, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """All inputs, with the action marked as changed; raises SpecError where state and action do not correspond."""
        vector(config.state, inputs, "state", (Kind.STATE,))
        for key in (config.state, "action"):
            refuse_normalised(key, inputs[key], config.type, "compares action and state in the robot's units")
        cls.check(config, inputs)
        return {**inputs, "action": changed(inputs["action"], f"relative to {config.state}")}

    @classmethod
    @abstractmethod
    def check(cls, config: Any, inputs: Specs) -> None:
        """Raises SpecError where state and action do not correspond."""

    def forward(self, batch: Batch) -> dict[str, Any]:
        """A new batch with the reference, and with the action rewritten (float32). Raises SpecError without the state."""
        if self.config.state not in batch:
            if "action" in batch:
                raise SpecError(f"`{self.config.type}` needs `{self.config.state}` beside the action")
            return dict(batch)
        state: Tensor = batch[self.config.state][:, -1].to(torch.float32, copy=True)
        kept = {**batch, self._key: state}
        return {**kept, "action": self.rewrite(batch["action"].float(), state)} if "action" in batch else kept

    def inverse(self, batch: Batch) -> dict[str, Any]:
        """A new batch with the action as it was (float32). Raises SpecError for a batch that did not go forward."""
        if "action" not in batch:
            return dict(batch)
        if self._key not in batch:
            raise SpecError(
                f"`{self.config.type}` cannot be undone without `{self.config.state}`",
                help="give `inverse` the batch that came out of `forward`",
            )
        return {**batch, "action": self.restore(batch["action"].float(), batch[self._key])}

    @abstractmethod
    def rewrite(self, actions: Tensor, state: Tensor) -> Tensor:
        """Actions (B, H, A) relative to the state (B, S)."""

    @abstractmethod
    def restore(self, actions: Tensor, state: Tensor) -> Tensor:
        """What `rewrite` got, from what it gave."""


class DifferenceConfig(ReferenceConfig):
    """Options of transforms that take differences, number by number."""

    absolute: list[int] = Field(default_factory=list)
    """Dimensions of the action that stay as they are, such as a gripper's; -1 is the last."""
    state_dims: list[int] | None = Field(default=None, min_length=1)
    """For each of the other dimensions of the action, the one of the state; by default that of the same number."""


class DifferenceTransform(ReferenceTransform):
    """Takes differences between dimensions of the action and those of the state that they start from."""

    def __init__(self, config: Any, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._sources = _sources(config, inputs)

    @classmethod
    def check(cls, config: Any, inputs: Specs) -> None:
        _sources(config, inputs)

    def start(self, state: Tensor) -> Tensor:
        """Where the action starts from (B, A), for states (B, S); 0 in dimensions that stay absolute."""
        zero = torch.zeros_like(state[:, 0])
        return torch.stack([zero if dim is None else state[:, dim] for dim in self._sources], dim=-1)

    def choose(self, relative: Tensor, absolute: Tensor) -> Tensor:
        """Of two chunks (B, H, A), the first in relative dimensions and the second in absolute ones."""
        pairs = zip(self._sources, relative.unbind(-1), absolute.unbind(-1), strict=True)
        return torch.stack([kept if source is None else moved for source, moved, kept in pairs], dim=-1)


def _sources(config: DifferenceConfig, inputs: Specs) -> list[int | None]:
    """For each dimension of the action, that of the state; None where the action stays absolute."""
    state, action = inputs[config.state], inputs["action"]
    absolute = columns(config.absolute, action.width, "action", "absolute")
    relative = [dim for dim in range(action.width) if dim not in absolute]
    if not relative:
        raise SpecError(
            "no dimension of the action is relative", field="absolute", label="all of them", help="remove it"
        )
    if config.state_dims is None:
        missing = [dim for dim in relative if dim >= state.width]
        if missing:
            raise SpecError(
                f"dimension {missing[0]} of the action has no counterpart in `{config.state}`, which has {state.width}",
                source=config.state,
                label=f"the action has {action.width} dimensions, `{config.state}` {state.width}",
                help="name the dimensions of the state under `state_dims`, or those of the action that stay as they are "
                "under `absolute`",
            )
        found = relative
    else:
        found = columns(config.state_dims, state.width, config.state, "state_dims")
        if len(found) != len(relative):
            raise SpecError(
                f"{len(found)} dimensions of the state for {len(relative)} relative ones of the action",
                field="state_dims",
                source="action",
                label=f"{len(relative)} are relative",
                help=f"give {len(relative)}: for the dimensions {', '.join(map(str, relative))} of the action",
            )
    of = dict(zip(relative, found, strict=True))
    return [of.get(dim) for dim in range(action.width)]
