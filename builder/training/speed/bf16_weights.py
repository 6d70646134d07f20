"""Bfloat16 copies of the weights that autocast would cast in every step.

A module computes with the copy; the optimiser keeps the float32 weight, and writes the copy anew in the pass in which it
updates it. Products are the same, because autocast rounds the same weights in the same way, but nothing is cast in a step,
gradients come in bfloat16, and several processes exchange half as much. A module that a pass over a batch does not reach,
or reaches where autocast is off, keeps its weights. A part that asks a weight for its type and brings values to it does so
earlier than autocast would.
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
"""What computes in bfloat16 under autocast, and does nothing else with its weights."""


class Shadows:
    """Copies that stand in the modules of a model between `install` and `remove`."""

    def __init__(self, model: nn.Module, cast: Collection[nn.Module], *, trained: bool) -> None:
        """Of frozen weights, and of `trained` ones where asked for, that only modules that are `cast` have.

        Nothing is copied before `install`.
        """
        self._places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
        places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = defaultdict(list)
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                places[parameter].append((module, name))
        for parameter, found in places.items():
            whole = parameter.dtype == torch.float32 and (trained or not parameter.requires_grad)
            if whole and all(module in cast and name in ("weight", "bias") for module, name in found):
                self._places[parameter] = found
        self.copies: dict[nn.Parameter, nn.Parameter] = {}
        """The copy of each weight that has one."""

    def install(self) -> None:
        """Let modules compute with copies of the weights as they are now."""
        self.copies = {
            weight: nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=weight.requires_grad)
            for weight in self._places
        }
        self._put(self.copies)

    def remove(self) -> None:
        """Let modules have their own weights again."""
        self._put({weight: weight for weight in self.copies})

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Modules have their own weights inside the block, and copies again after it."""
        self.remove()
        try:
            yield
        finally:
            self._put(self.copies)

    def _put(self, weights: dict[nn.Parameter, nn.Parameter]) -> None:
        for weight, stands in weights.items():
            for module, name in self._places[weight]:
                module._parameters[name] = stands


def casting(model: nn.Module, run: Callable[[], object]) -> set[nn.Module]:
    """The modules whose weights autocast casts in all their uses while `run` runs, and that do nothing else with them."""
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
