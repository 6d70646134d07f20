"""Wide linear layers compute their three products, forward and backward, in 8-bit floats (Micikevicius et al., 2022).

torchao's `Float8Linear` scales and rounds input, weight and gradient anew in every step. One of these stands behind each
layer and reads the same table of parameters, so the layer stays the author's own object, with its weights, names and hooks;
a bf16 copy or a shard that is put into the layer is what is rounded. Nothing else of a policy changes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from types import MethodType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....schemas.errors import TrainingError
from ..distributed.sharding import unsharded
from .compilation import layers_of
from .module_patches import remember

Scales = Literal["tensorwise", "rowwise"]

LARGE = {"tensorwise": 900, "rowwise": 1100}
"""Least 1 / (1 / rows + 1 / in + 1 / out) of a product for which float8 pays, by how its factors are scaled.

A product grows with all three numbers, what has to be scaled and rounded with two of them at a time. These are the least
for which no layer of 768 to 16384 features loses more than 0.1 % against bf16 by torchao's own model of an H100
(`torchao.testing.training.roofline_utils`). By that model 16384 rows of 2048 to 16384 features are 1.52 (tensorwise) and
1.38 (rowwise) times as fast, 2048 rows of 2048 to 2048 only 0.91 and 0.89 times, and ViT-B's 768 to 3072, which no number
of rows makes large, 1.11 and 0.92 times at 50432 rows.
"""
_MULTIPLE = 16
"""What the sizes of a product in float8 must be multiples of."""
_EMULATED = False
"""Whether float8 is rounded to, but not computed in, on any device: for tests."""


def require(how: Scales, *, on_gpu: bool) -> None:
    """Raises TrainingError where this machine cannot compute in float8."""
    asked, otherwise = f"`training.float8: {how}`", "set `training.float8: off`"
    if find_spec("torchao") is None:
        raise TrainingError(f"{asked} needs torchao: `pip install policysmith[float8]`, or {otherwise}")
    if _EMULATED:
        return
    if not on_gpu:
        raise TrainingError(f"{asked} needs a GPU, and this run is on a CPU; {otherwise}")
    if torch.cuda.get_device_capability() < (8, 9):
        name = torch.cuda.get_device_name()
        raise TrainingError(
            f"{asked} needs a GPU of compute capability 8.9 or more, and this {name} has less; {otherwise}"
        )


def float8_layers(
    policy: nn.Module, how: Literal["off"] | Scales, undo: ExitStack, note: Callable[[str], None]
) -> list[nn.Linear]:
    """Let the wide layers of a policy compute in float8 until `undo` closes, if asked for, and note it; gives them."""
    if how == "off":
        return []
    layers = wide_layers(policy, how)
    to_float8(layers, how, undo)
    note(told(layers, how))
    return layers


def wide_layers(policy: nn.Module, how: Scales) -> list[nn.Linear]:
    """Plain linear layers inside the layers that a policy repeats which train, and are large for enough rows.

    Low-rank adapters and layers that give actions are too narrow; weights that something else holds too are left alone.
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
        and math.isfinite(_enough(module, how))
    ]


def to_float8(layers: Sequence[nn.Linear], how: Scales, undo: ExitStack) -> None:
    """Let layers compute in float8, with a scale for each tensor or each row, until `undo` closes."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training  # takes seconds

    config = replace(Float8LinearConfig.from_recipe_name(how), emulate=_EMULATED)
    for layer in layers:
        twin: Any = convert_to_float8_training(layer, config=config)
        twin._parameters = layer._parameters
        twin.enough = _enough(layer, how)
        remember(undo, layer, "forward")
        # a method of the twin, because `torch.compile` would compile anew for every object among arguments
        layer.forward = MethodType(_product, twin)  # type: ignore[method-assign]


@contextmanager
def without(layers: Sequence[nn.Linear]) -> Iterator[None]:
    """Layers compute as their classes do inside the block, and in float8 again after it."""
    own = [vars(layer).pop("forward") for layer in layers]
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            layer.forward = forward  # type: ignore[method-assign]


def told(layers: Sequence[nn.Linear], how: Scales) -> str:
    """For the log, which layers compute in float8."""
    if not layers:
        return "no layer computes in float8: none that trains is wide enough to gain by it"
    shapes = Counter((layer.in_features, layer.out_features, _enough(layer, how)) for layer in layers)
    each = ", ".join(f"{n} of {i} to {o} features from {rows} rows on" for (i, o, rows), n in shapes.items())
    return f"{len(layers)} layers compute in float8, {how}: {each}"


def _enough(layer: nn.Linear, how: Scales) -> float:
    """Rows from which a layer's products are large; infinity where no number is enough."""
    spare = 1 / LARGE[how] - 1 / layer.in_features - 1 / layer.out_features
    return math.ceil(1 / spare) if spare > 0.0 else math.inf


def _product(twin: Any, input: Tensor) -> Tensor:  # called as the layer is
    """(..., in) -> (..., out), in float8 where there are rows enough and autocast would round, too."""
    x, rows = input, input.numel() // twin.in_features
    if rows < twin.enough or not torch.is_autocast_enabled(x.device.type):
        return F.linear(x, twin.weight, twin.bias)
    product: Callable[[Tensor], Tensor] = twin.forward
    missing = -rows % _MULTIPLE
    if not missing:
        return product(x)
    whole = F.pad(x.flatten(0, -2), (0, 0, 0, missing))
    return product(whole)[:rows].reshape(*x.shape[:-1], -1)
