"""Weight names of Diffusion Policy's U-Net in LeRobot."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from .weight_names import WeightPair, layer, same

_THEIRS, _OURS = "diffusion.unet", "head.network"


def unet_pairs(widths: Sequence[int], action_dim: int, columns: Tensor) -> Iterator[WeightPair]:
    """Yield the weights of the network; column j of condition layers is our `columns[j]`."""
    levels = [action_dim, *widths]
    for index, (before, after) in enumerate(itertools.pairwise(levels)):
        name = f"down_modules.{index}", f"down.{index}"
        yield from _level(*name, before, after, columns)
        if index < len(widths) - 1:
            yield from _layer(f"{name[0]}.2", f"{name[1]}.change")
    for place, own in (("0", "first"), ("1", "second")):
        yield from _block(f"mid_modules.{place}", f"middle.{own}", columns, shortcut=False)
    for index, (before, after) in enumerate(itertools.pairwise(reversed(widths))):
        name = f"up_modules.{index}", f"up.{index}"
        yield from _level(*name, 2 * before, after, columns)
        yield from _layer(f"{name[0]}.2", f"{name[1]}.change")
    for theirs, ours in (
        ("diffusion_step_encoder.1", "time.0"),
        ("diffusion_step_encoder.3", "time.2"),
        ("final_conv.0.block.0", "last.0"),
        ("final_conv.0.block.1", "last.1"),
        ("final_conv.1", "action_out"),
    ):
        yield from _layer(theirs, ours)


def _level(theirs: str, ours: str, before: int, after: int, columns: Tensor) -> Iterator[WeightPair]:
    yield from _block(f"{theirs}.0", f"{ours}.first", columns, shortcut=before != after)
    yield from _block(f"{theirs}.1", f"{ours}.second", columns, shortcut=False)


def _block(theirs: str, ours: str, columns: Tensor, *, shortcut: bool) -> Iterator[WeightPair]:
    for conv, own in (("conv1", "first"), ("conv2", "second")):
        for index in range(2):
            yield from _layer(f"{theirs}.{conv}.block.{index}", f"{ours}.{own}.{index}")
    if shortcut:
        yield from _layer(f"{theirs}.residual_conv", f"{ours}.shortcut")
    film = f"{_THEIRS}.{theirs}.cond_encoder.1", f"{_OURS}.{ours}.film"
    back = columns.argsort()
    yield WeightPair(
        f"{film[0]}.weight",
        (f"{film[1]}.weight",),
        lambda weight: [weight[:, back]],
        lambda weights: weights[0][:, columns],
    )
    yield same(f"{film[0]}.bias", f"{film[1]}.bias")


def _layer(theirs: str, ours: str) -> Any:
    return layer(f"{_THEIRS}.{theirs}", f"{_OURS}.{ours}")


__all__ = ["unet_pairs"]
