"""Real-time chunking, against the formulas of Black et al. (2025) written out."""

from __future__ import annotations

import math

import pytest
import torch

from policysmith.components.real_time import Prefix, guided_slope, soft_mask


@pytest.mark.parametrize(
    ("horizon", "delay", "execute"), [(8, 2, 3), (8, 0, 4), (16, 4, 4), (5, 5, 0), (6, 1, 5)]
)
def test_the_mask_is_that_of_the_paper(horizon: int, delay: int, execute: int) -> None:
    expected = []
    for i in range(horizon):
        if i < delay:
            expected.append(1.0)
        elif i < horizon - execute:
            c = (horizon - execute - i) / (horizon - execute - delay + 1)
            expected.append(c * (math.exp(c) - 1.0) / (math.e - 1.0))
        else:
            expected.append(0.0)
    assert soft_mask(horizon, delay, horizon - execute).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("level", [1.0, 0.9, 0.5, 0.1])
def test_guidance_pulls_along_the_jacobian(level: float) -> None:
    """For a velocity that is linear in the chunk, the Jacobian is known."""
    random = torch.Generator().manual_seed(0)
    batch, horizon, dim = 2, 3, 2
    size = horizon * dim
    matrix = torch.randn(size, size, generator=random).double()
    chunk = torch.randn(batch, horizon, dim, generator=random).double()
    goal = torch.randn(batch, horizon, dim, generator=random).double()
    weights = torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 0.2]]).double()

    def slope_at(x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) @ matrix.T).reshape(x.shape)

    found = guided_slope(slope_at, chunk, level, Prefix(goal, weights, 5.0))
    time = 1.0 - level
    beta = 5.0 if time == 0.0 else min(5.0, level / (time * (level**2 / (time**2 + level**2))))
    jacobian = torch.eye(size).double() - level * matrix
    for row in range(batch):
        action = jacobian @ chunk[row].flatten()
        error = (goal[row].flatten() - action) * weights[row].repeat_interleave(dim)
        expected = matrix @ chunk[row].flatten() - beta * (jacobian.T @ error)
        torch.testing.assert_close(found[row].flatten(), expected)
