"""Mapping of weights between another project and ours, one by one, so that none is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....schemas.errors import WeightsError


@dataclass(frozen=True)
class WeightPair:
    """One weight of theirs, and the equivalent weights of ours."""

    theirs: str
    ours: tuple[str, ...]
    forth: Callable[[Tensor], Sequence[Tensor]]
    back: Callable[[Sequence[Tensor]], Tensor]


def same(theirs: str, ours: str) -> WeightPair:
    """Return a pair for a weight that differs only in name."""
    return WeightPair(theirs, (ours,), lambda weight: [weight], lambda weights: weights[0])


def layer(theirs: str, ours: str) -> list[WeightPair]:
    """Return the pairs for weight and bias of a layer."""
    return [same(f"{theirs}.{name}", f"{ours}.{name}") for name in ("weight", "bias")]


def packed(theirs: str, ours: Sequence[str]) -> WeightPair:
    """Return the pair for a weight that stacks several of ours."""
    return WeightPair(
        theirs, tuple(ours), lambda weight: weight.chunk(len(ours)), lambda weights: torch.cat(list(weights))
    )


def pointwise(theirs: str, ours: str) -> list[WeightPair]:
    """Return the pairs for a 1 x 1 convolution, which is a linear layer of ours."""
    kernel = WeightPair(
        f"{theirs}.weight",
        (f"{ours}.weight",),
        lambda weight: [weight.flatten(1)],
        lambda weights: weights[0][:, :, None, None],
    )
    return [kernel, same(f"{theirs}.bias", f"{ours}.bias")]


def to_ours(weights: Mapping[str, Tensor], pairs: Iterable[WeightPair], policy: str) -> dict[str, Tensor]:
    """Return their weights under our names, or raise WeightsError for missing or unexpected ones."""
    pairs = list(pairs)
    _account(weights, [pair.theirs for pair in pairs], policy)
    return {
        name: weight.contiguous()
        for pair in pairs
        for name, weight in zip(pair.ours, pair.forth(weights[pair.theirs]), strict=True)
    }


def to_theirs(weights: Mapping[str, Tensor], pairs: Iterable[WeightPair], policy: str) -> dict[str, Tensor]:
    """Return our weights under their names, or raise WeightsError for missing or unexpected ones."""
    pairs = list(pairs)
    _account(weights, [name for pair in pairs for name in pair.ours], policy)
    return {pair.theirs: pair.back([weights[name] for name in pair.ours]).contiguous() for pair in pairs}


def _account(weights: Mapping[str, Tensor], expected: Sequence[str], policy: str) -> None:
    wanted = set(expected)
    complaints = [
        f"{problem}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for problem, names in (
            ("missing", sorted(wanted - weights.keys())),
            ("unexpected", sorted(weights.keys() - wanted)),
        )
        if names
    ]
    if complaints:
        raise WeightsError(f"the weights are not those of {policy} with this config: {'; '.join(complaints)}")


__all__ = ["WeightPair", "layer", "packed", "pointwise", "same", "to_ours", "to_theirs"]
