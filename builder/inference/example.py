"""Made-up observations of a policy, for warming up and timing."""

from __future__ import annotations

from typing import Any

import torch

from ...schemas.errors import SpecError
from ...schemas.specs import Kind
from ..policy import BasePolicyModel

TASK = "go"


def example_samples(policy: BasePolicyModel, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return samples (T, ...) of random images, states near those of training, and an instruction.

    With several robots, they are of the first.
    """
    random = torch.Generator().manual_seed(seed)
    robot = policy.robots.find(policy.robots.names[0]) if policy.robots else None
    observed = policy.observed
    statistics = policy.content.get("statistics") or {}
    held = statistics.get(robot.name, {}) if robot is not None else statistics
    samples = []
    for _ in range(count):
        sample: dict[str, Any] = {}
        for key, given in {**observed.required, **observed.optional}.items():
            spec = given if robot is None else robot.own.get(key)
            if spec is None:
                continue
            if spec.kind is Kind.TEXT:
                sample[key] = TASK
                continue
            if not all(isinstance(dim, int) for dim in spec.dims[1:]):
                raise SpecError(f"`{key}` is {spec}, whose size is unknown, so there is no example of it")
            shape = [int(dim) for dim in spec.dims[1:]]
            if spec.kind is Kind.IMAGE:
                sample[key] = torch.randint(256, shape, dtype=torch.uint8, generator=random)
            else:
                sample[key] = _near_training(held.get(key, {}), shape, random)
        samples.append(sample if robot is None else robot.to_common(sample))
    return samples


def _near_training(statistics: Any, shape: list[int], random: torch.Generator) -> torch.Tensor:
    if "min" not in statistics or "max" not in statistics:
        return torch.randn(shape, generator=random)
    low, high = (torch.tensor(statistics[end], dtype=torch.float32) for end in ("min", "max"))
    return low + (high - low) * torch.rand(shape, generator=random)


__all__ = ["TASK", "example_samples"]
