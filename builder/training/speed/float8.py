"""Products of wide linear layers, forward and backward, in 8-bit floats (Micikevicius et al., 2022).

torchao's `Float8Linear` scales and rounds input, weight and gradient in every step. A twin of this class
computes for each layer, from the layer's own table of parameters, so that the layer keeps its identity,
weights, names and hooks; a bf16 copy or a shard in that table is rounded like a weight. See
docs/decisions/0013-float8-stands-behind-a-layer.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed.sharding import unsharded
from ..module_patches import restore_later
from .compilation import layers_of

Scales = Literal["tensorwise", "rowwise"]

LARGE = {"tensorwise": 900, "rowwise": 1100}
"""Smallest 1 / (1 / rows + 1 / in + 1 / out) of a product for which float8 pays, by the way of scaling.

A product grows with all three numbers, scaling and rounding with two of them at a time. These are the
smallest values for which no layer of 768 to 16384 features loses more than 0.1 % against bf16 by torchao's
own model of an H100 (`torchao.testing.training.roofline_utils`). By that model 16384 rows of 2048 to 16384
features are 1.52 (tensorwise) and 1.38 (rowwise) times as fast, 2048 rows of 2048 to 2048 only 0.91 and 0.89
times, and ViT-B's 768 to 3072, which no number of rows makes large, 1.11 and 0.92 times at 50432 rows.
"""
_MULTIPLE = 16
"""Divisor of all sizes of a product in float8."""


def float8_layers(
    policy: nn.Module, how: Literal["off"] | Scales, undo: ExitStack, note: Callable[[str], None]
) -> list[nn.Linear]:
    """Compute the wide layers of a policy in float8 until `undo` closes, unless `how` is off; note and return them."""
    if how == "off":
        return []
    layers = wide_layers(policy, how)
    to_float8(layers, how, undo)
    note(describe(layers, how))
    return layers


def wide_layers(policy: nn.Module, how: Scales) -> list[nn.Linear]:
    """Return the plain linear layers in a policy's repeated layers that train and are wide enough for float8.

    Low-rank adapters and layers that produce actions are too narrow; shared weights are left alone.
    """
    holders = Counter(id(weight) for module in policy.modules() for weight in module._parameters.values())
    inside = dict.fromkeys(module for layer in layers_of(policy) for module in layer.modules())
    return [
        module
        for module in inside
        if isinstance(module, nn.Linear)
        and unsharded(module) is nn.Linear
        and "forward" not in vars(module)
        and module.weight.requires_grad
        and holders[id(module.weight)] == 1
        and module.in_features % _MULTIPLE == module.out_features % _MULTIPLE == 0
        and math.isfinite(_enough_rows(module, how))
    ]


def to_float8(layers: Sequence[nn.Linear], how: Scales, undo: ExitStack) -> None:
    """Compute layers in float8, with a scale for each tensor or each row, until `undo` closes."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training  # takes seconds

    config = Float8LinearConfig.from_recipe_name(how)
    for layer in layers:
        twin: Any = convert_to_float8_training(layer, config=config)
        twin._parameters = layer._parameters
        twin.enough = _enough_rows(layer, how)
        restore_later(undo, layer, "forward")
        # a method of the twin, because `torch.compile` would compile again for every object among its arguments
        layer.forward = MethodType(_product, twin)  # type: ignore[method-assign]


@contextmanager
def without_float8(layers: Sequence[nn.Linear]) -> Iterator[None]:
    """Compute layers as their classes do while the context is active."""
    patched = [vars(layer).pop("forward") for layer in layers]
    try:
        yield
    finally:
        for layer, forward in zip(layers, patched, strict=True):
            layer.forward = forward  # type: ignore[method-assign]


def describe(layers: Sequence[nn.Linear], how: Scales) -> str:
    """Describe, for the log, the layers that compute in float8."""
    if not layers:
        return "no layer computes in float8: none that trains is wide enough to gain by it"
    shapes = Counter((layer.in_features, layer.out_features, _enough_rows(layer, how)) for layer in layers)
    each = ", ".join(f"{n} of {i} to {o} features from {rows} rows on" for (i, o, rows), n in shapes.items())
    return f"{len(layers)} layers compute in float8, {how}: {each}"


def _enough_rows(layer: nn.Linear, how: Scales) -> float:
    """Return the number of rows from which float8 pays for a layer; infinity if no number is enough."""
    spare = 1 / LARGE[how] - 1 / layer.in_features - 1 / layer.out_features
    return math.ceil(1 / spare) if spare > 0.0 else math.inf


def _product(twin: Any, input: Tensor) -> Tensor:  # called as the layer is
    """(..., in) -> (..., out), in float8 if there are enough rows and autocast would round, too."""
    x, rows = input, input.numel() // twin.in_features
    if rows < twin.enough or not torch.is_autocast_enabled(x.device.type):
        return F.linear(x, twin.weight, twin.bias)
    product: Callable[[Tensor], Tensor] = twin.forward
    missing = -rows % _MULTIPLE
    if not missing:
        return product(x)
    whole = F.pad(x.flatten(0, -2), (0, 0, 0, missing))
    return product(whole)[:rows].reshape(*x.shape[:-1], -1)
