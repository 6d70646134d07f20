"""Layers with separate weights for each robot, or shared ones for data of one robot."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from .basic import CategoryLinear


def robot_linear(robots: int | None, size: int, out: int) -> nn.Linear | CategoryLinear:
    """Build a linear layer for a number of robots, or a plain one for None."""
    return nn.Linear(size, out) if robots is None else CategoryLinear(robots, size, out)


def apply_robot_linear(layer: nn.Module, values: Tensor, robot: Tensor | None) -> Tensor:
    """Apply a layer of `robot_linear` to values (B, N, D) of robots (B,)."""
    out: Tensor = layer(values) if robot is None else layer(values, robot)
    return out


class RobotMlp(nn.Module):
    """Two linear layers, with separate weights for each of several robots."""

    def __init__(self, robots: int | None, sizes: list[int], silu: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(robot_linear(robots, *pair) for pair in itertools.pairwise(sizes))
        self.activation = nn.SiLU() if silu else nn.ReLU()

    def forward(self, values: Tensor, robot: Tensor | None) -> Tensor:
        """Map values (B, N, D) of robots (B,) to (B, N, D)."""
        first, second = self.layers
        return apply_robot_linear(second, self.activation(apply_robot_linear(first, values, robot)), robot)
