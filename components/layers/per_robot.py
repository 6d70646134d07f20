"""Layers with weights of their own for each robot where the data has several, and for all of them where it has not."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from .basic import CategoryLinear


def robot_linear(robots: int | None, size: int, out: int) -> nn.Linear | CategoryLinear:
    """A linear layer for so many robots; None stands for one layer whatever the robot."""
    return nn.Linear(size, out) if robots is None else CategoryLinear(robots, size, out)


def applied(layer: nn.Module, values: Tensor, robot: Tensor | None) -> Tensor:
    """What a layer of `robot_linear` makes of values (B, N, D) of robots (B,)."""
    out: Tensor = layer(values) if robot is None else layer(values, robot)
    return out


class RobotMlp(nn.Module):
    """Two linear layers, with weights of their own for each robot where there are several."""

    def __init__(self, robots: int | None, sizes: list[int], silu: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(robot_linear(robots, *pair) for pair in itertools.pairwise(sizes))
        self.activation = nn.SiLU() if silu else nn.ReLU()

    def forward(self, values: Tensor, robot: Tensor | None) -> Tensor:
        """values (B, N, D) of robots (B,) -> (B, N, D)."""
        first, second = self.layers
        return applied(second, self.activation(applied(first, values, robot)), robot)
