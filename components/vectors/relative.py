"""Transforms of actions relative to the state of the robot."""

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
from .specs import changed_spec, find_vector, refuse_normalized_vector, resolve_dims


class ReferenceConfig(PartConfig):
    """Options of transforms that express actions relative to the state."""

    state: str = "observation.state"
    """State of the robot to refer to, in the units of the action."""


class ReferenceTransform(Transform):
    """Transform of the action by the latest step of a state, and back.

    The batch keeps the state as `action_reference.<key>` (B, S), so that the inverse finds its original
    values, independent of later transforms and of what the backbones read.
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
        """Return the inputs, with a changed action; raise SpecError if state and action do not match."""
        find_vector(config.state, inputs, "state", (Kind.STATE,))
        for key in (config.state, "action"):
            refuse_normalized_vector(
                key, inputs[key], config.type, "compares action and state in the robot's units"
            )
        cls.check(config, inputs)
        return {**inputs, "action": changed_spec(inputs["action"], f"relative to {config.state}")}

    @classmethod
    @abstractmethod
    def check(cls, config: Any, inputs: Specs) -> None:
        """Raise SpecError if state and action do not match."""

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Return a batch with the reference and the relative action (float32).

        Raises:
            SpecError: The state is missing.
        """
        if self.config.state not in batch:
            if "action" in batch:
                raise SpecError(f"`{self.config.type}` needs `{self.config.state}` beside the action")
            return dict(batch)
        state: Tensor = batch[self.config.state][:, -1].to(torch.float32, copy=True)
        kept = {**batch, self._key: state}
        return {**kept, "action": self.rewrite(batch["action"].float(), state)} if "action" in batch else kept

    def inverse(self, batch: Batch) -> dict[str, Any]:
        """Return a batch with the original action (float32); raise SpecError if `forward` has not seen it."""
        if "action" not in batch:
            return dict(batch)
        if self._key not in batch:
            raise SpecError(
                f"`{self.config.type}` cannot be undone without `{self.config.state}`",
                help="pass the output of `forward` to `inverse`",
            )
        return {**batch, "action": self.restore(batch["action"].float(), batch[self._key])}

    @abstractmethod
    def rewrite(self, actions: Tensor, state: Tensor) -> Tensor:
        """Return actions (B, H, A) relative to the state (B, S)."""

    @abstractmethod
    def restore(self, actions: Tensor, state: Tensor) -> Tensor:
        """Invert `rewrite`."""


class DifferenceConfig(ReferenceConfig):
    """Options of transforms that take differences, number by number."""

    absolute: list[int] = Field(default_factory=list)
    """Dimensions of the action that stay unchanged, such as a gripper's; -1 is the last."""
    state_dims: list[int] | None = Field(default=None, min_length=1)
    """Dimension of the state for each other dimension of the action; by default the same number."""


class DifferenceTransform(ReferenceTransform):
    """Differences between dimensions of the action and those of the state."""

    def __init__(self, config: Any, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._state_dims = _state_dims(config, inputs)

    @classmethod
    def check(cls, config: Any, inputs: Specs) -> None:
        _state_dims(config, inputs)

    def start(self, state: Tensor) -> Tensor:
        """Return the reference (B, A) for states (B, S); 0 in absolute dimensions."""
        zero = torch.zeros_like(state[:, 0])
        return torch.stack([zero if dim is None else state[:, dim] for dim in self._state_dims], dim=-1)

    def choose(self, relative: Tensor, absolute: Tensor) -> Tensor:
        """Select the first of two chunks (B, H, A) in relative dimensions, the second in absolute ones."""
        pairs = zip(self._state_dims, relative.unbind(-1), absolute.unbind(-1), strict=True)
        return torch.stack([kept if source is None else moved for source, moved, kept in pairs], dim=-1)


def _state_dims(config: DifferenceConfig, inputs: Specs) -> list[int | None]:
    """Return the dimension of the state for each dimension of the action; None for absolute ones."""
    state, action = inputs[config.state], inputs["action"]
    absolute = resolve_dims(config.absolute, action.width, "action", "absolute")
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
                help="name the dimensions of the state under `state_dims`, or absolute dimensions of the action "
                "under `absolute`",
            )
        found = relative
    else:
        found = resolve_dims(config.state_dims, state.width, config.state, "state_dims")
        if len(found) != len(relative):
            raise SpecError(
                f"{len(found)} dimensions of the state for {len(relative)} relative ones of the action",
                field="state_dims",
                source="action",
                label=f"{len(relative)} are relative",
                help=f"set {len(relative)}, for the dimensions {', '.join(map(str, relative))} of the action",
            )
    of = dict(zip(relative, found, strict=True))
    return [of.get(dim) for dim in range(action.width)]
