"""Bfloat16 copies of the weights that autocast would cast in every step.

A module computes with the copy; the optimizer keeps the float32 weight, and writes the copy in the pass in
which it updates the weight. Products are the same, because autocast rounds the same weights in the same way,
but nothing is cast in a step, gradients come in bfloat16, and several processes exchange half as much. A
module that a pass over a batch does not reach, or reaches where autocast is off, keeps its weights. A part
that converts values to the dtype of a weight converts them earlier than autocast would.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

_CAST = {
    kind.forward
    for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
}
"""Forward passes that compute in bfloat16 under autocast, and use their weights for nothing else."""


class BF16Copies:
    """Copies that replace the weights of a model's modules between `install` and `remove`."""

    def __init__(self, model: nn.Module, cast: Collection[nn.Module], *, trained: bool) -> None:
        """Choose the frozen weights, and with `trained` all weights, that only modules in `cast` hold."""
        self._places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
        places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = defaultdict(list)
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                places[parameter].append((module, name))
        for parameter, found in places.items():
            chosen = parameter.dtype == torch.float32 and (trained or not parameter.requires_grad)
            if chosen and all(module in cast and name in ("weight", "bias") for module, name in found):
                self._places[parameter] = found
        self.copies: dict[nn.Parameter, nn.Parameter] = {}
        """The copy of each weight that has one, once installed."""

    def install(self) -> None:
        """Copy the weights, and let modules compute with the copies."""
        self.copies = {
            weight: nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=weight.requires_grad)
            for weight in self._places
        }
        self._put(self.copies)

    def remove(self) -> None:
        """Give modules their own weights again."""
        self._put({weight: weight for weight in self.copies})

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Give modules their own weights while the context is active."""
        self.remove()
        try:
            yield
        finally:
            self._put(self.copies)

    def _put(self, replacements: dict[nn.Parameter, nn.Parameter]) -> None:
        for weight, replacement in replacements.items():
            for module, name in self._places[weight]:
                module._parameters[name] = replacement


def cast_modules(model: nn.Module, run: Callable[[], object]) -> set[nn.Module]:
    """Return the modules whose weights autocast casts in all calls during `run`, and nothing else reads."""
    seen: dict[nn.Module, bool] = {}

    def see(module: nn.Module, inputs: object) -> None:
        device = next(module.parameters()).device
        seen[module] = seen.get(module, True) and torch.is_autocast_enabled(device.type)

    plain = [m for m in model.modules() if type(m).forward in _CAST and not m._forward_pre_hooks]
    hooks = [module.register_forward_pre_hook(see) for module in plain]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return {module for module, cast in seen.items() if cast}
