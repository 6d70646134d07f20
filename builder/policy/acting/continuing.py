"""The actions of a running chunk, as a policy continues them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....components.embodiments import EMBODIMENT
from ....components.features import chunk_size
from ....components.real_time import Prefix, soft_mask
from ....schemas.errors import SpecError
from ....schemas.specs import Spec
from .ranges import finite

if TYPE_CHECKING:
    from .robot_interface import RobotInterface

_SENT = "send the actions of the running chunk that are still to come"


def require_continuation(policy: RobotInterface) -> None:
    """Raise SpecError if a policy cannot continue a running chunk."""
    if policy.continuation is None:
        recipe = policy.content.get("recipe") or {}
        name = (
            recipe["policy"]["head"]["type"] if "head" in recipe.get("policy", {}) else type(policy).__name__
        )
        raise SpecError(
            f"`{name}` predicts each chunk anew and cannot continue a running one",
            help="act without real-time chunking (`--think-ahead plain`), or train a `flow_matching` or a "
            "`diffusion` head",
        )


def prefix_of(policy: RobotInterface, observed: Mapping[str, Any], running: Tensor, delay: int) -> Prefix:
    """Return the actions (N, A) that would follow an admitted observation, as a prefix of its chunk.

    The first `delay` will have run. Actions of a chunk that lie in the past weigh nothing.

    Raises:
        SpecError: The policy cannot continue a chunk, or the actions are none of its robot's.
    """
    require_continuation(policy)
    specs = {key: Spec.from_json(spec) for key, spec in policy.content["specs"].items()}
    steps, width = chunk_size(specs)
    past, own = policy.present, width
    if policy.robots:
        own = policy.robots.find(observed[EMBODIMENT]).action_dim
    if running.ndim != 2 or running.shape[1] != own or not 0 < len(running) <= steps - past:
        raise SpecError(
            f"the running chunk is {tuple(running.shape)}; send 1 to {steps - past} actions of {own} values",
            help=_SENT,
        )
    finite("running", running, _SENT)
    policy.ranges_of(observed).check("action", running, _SENT)
    actions = torch.zeros(1, steps, width)
    actions[0, past : past + len(running), :own] = running
    actions[0, :past] = actions[0, past]
    actions[0, past + len(running) :] = actions[0, past + len(running) - 1]
    weights = torch.cat([torch.zeros(past), soft_mask(steps - past, delay, len(running))])
    return Prefix(actions, weights[None])


__all__ = ["prefix_of", "require_continuation"]
