"""A made-up observation of a policy, to warm it up with."""

from __future__ import annotations

from typing import Any

import torch

from ...components.embodiments import EMBODIMENT
from ...schemas.specs import Kind
from ..policy import BasePolicyModel


def example_observation(policy: BasePolicyModel) -> dict[str, Any]:
    """Return one time step that the policy admits: gray images, states in the middle of their ranges."""
    observed, statistics = policy.observed, policy.content.get("statistics") or {}
    specs = {**observed.required, **observed.optional}
    found: dict[str, Any] = {}
    if observed.robots:
        robot = observed.robots.find(observed.robots.names[0])
        specs = {key: robot.own[key] for key in specs if key in robot.own}
        statistics, found[EMBODIMENT] = statistics.get(robot.name) or {}, robot.name
    for key, spec in specs.items():
        if spec.kind is Kind.TEXT:
            found[key] = ""
        elif spec.kind is Kind.IMAGE:
            found[key] = torch.full([int(size) for size in spec.dims[2:]], 128, dtype=torch.uint8)
        else:
            held = statistics.get(key) or {"min": [0.0] * spec.width, "max": [0.0] * spec.width}
            found[key] = (torch.tensor(held["min"]) + torch.tensor(held["max"])) / 2.0
    return found
