"""Low-rank adapters of the layers of a backbone (LoRA; Hu et al., 2022), by peft."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from ...schemas.errors import SpecError, WeightsError
from ...schemas.part import LoraSection

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

_ADAPTABLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def adapt(backbone: nn.Module, options: LoraSection) -> None:
    """Add adapters to the chosen layers, with no initial effect, and freeze everything else.

    Raises:
        SpecError: A pattern matches no layer, or there is no layer to adapt.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes a second, and few backbones have adapters

    chosen = _matching(adaptable(backbone), options)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]   # a factor, which may be any number
        lora_dropout=options.dropout,
        target_modules="|".join(re.escape(f"backbone.{name}") for name in chosen),
    )
    inject_adapter_in_model(config, nn.ModuleDict({"backbone": backbone}))
    backbone.train(backbone.training)
    freeze_all_but_adapters(backbone)


def adaptable(backbone: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that can have an adapter, by name.

    This excludes layers inside torch's attention, which reads their weights without calling them, layers with
    shared weights, and grouped convolutions, into which an adapter cannot be merged.
    """
    inside = {
        id(part) for m in backbone.modules() if isinstance(m, nn.MultiheadAttention) for part in m.modules()
    }
    held = Counter(id(p) for m in backbone.modules() for p in m.parameters(recurse=False))
    return {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, _ADAPTABLE)
        and not _is_own(backbone, name)
        and id(module) not in inside
        and held[id(module.weight)] == 1
        and getattr(module, "groups", 1) == 1
    }


def freeze_all_but_adapters(backbone: nn.Module) -> None:
    """Freeze everything but the adapters and the part's own children, if there are adapters."""
    adapters = {
        id(parameter)
        for _, _, layer in _adapted_layers(backbone)
        for name in layer.adapter_layer_names
        for parameter in getattr(layer, name).parameters()
    }
    for name, parameter in backbone.named_parameters() if adapters else ():
        parameter.requires_grad_(id(parameter) in adapters or _is_own(backbone, name))


def _is_own(backbone: nn.Module, name: str) -> bool:
    return name.partition(".")[0] in getattr(backbone, "own", ())


def count_adapters(backbone: nn.Module) -> int:
    """Return the number of layers with an adapter."""
    return len(_adapted_layers(backbone))


@contextmanager
def without_adapters(backbone: nn.Module) -> Iterator[None]:
    """Remove the adapters while the context is active, so that layers have the names of their weights."""
    layers = _adapted_layers(backbone)
    for parent, name, layer in layers:
        setattr(parent, name, layer.get_base_layer())
    try:
        yield
    finally:
        for parent, name, layer in layers:
            setattr(parent, name, layer)


def merge(backbone: nn.Module) -> None:
    """Merge the adapters into their weights, W + (alpha / rank) B A, and remove them.

    Raises:
        WeightsError: An adapter is not finite.
    """
    for parent, name, layer in _adapted_layers(backbone):
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise WeightsError(f"the adapter of `{name}` cannot be merged: {error}") from error
        setattr(parent, name, layer.get_base_layer())


def _adapted_layers(backbone: nn.Module) -> list[tuple[nn.Module, str, LoraLayer]]:
    """Return every layer with an adapter, with its parent module and its name there."""
    if not any(name.rpartition(".")[2].startswith("lora_") for name, _ in backbone.named_modules()):
        return []
    from peft.tuners.lora import LoraLayer

    return [
        (parent, name, child)
        for parent in backbone.modules()
        for name, child in parent.named_children()
        if isinstance(child, LoraLayer)
    ]


def _matching(layers: Mapping[str, nn.Module], options: LoraSection) -> list[str]:
    """Return the names of the layers that the options select."""
    if options.targets is None:
        linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
        if not linear:
            help = (
                f"name others under `targets`; there are {_example_names(layers)}"
                if layers
                else "leave `lora` out"
            )
            raise SpecError(
                "it has no linear layer for an adapter", field="lora", label="no layer to adapt", help=help
            )
        return linear
    found: list[str] = []
    for position, pattern in enumerate(options.targets):
        matched = [name for name in layers if fnmatch.fnmatchcase(name, pattern)]
        if not matched:
            raise SpecError(
                f"no layer that can have an adapter matches `{pattern}`",
                field=f"lora.targets.{position}",
                label="matches nothing",
                help=f"layers are named like {_example_names(layers)}"
                if layers
                else "it has none; leave `lora` out",
            )
        found += matched
    return list(dict.fromkeys(found))


def _example_names(names: Mapping[str, nn.Module]) -> str:
    """Return a few names, the first for each last component."""
    firsts: dict[str, str] = {}
    for name in names:
        firsts.setdefault(name.rpartition(".")[2], f"`{name}`")
    return ", ".join(list(firsts.values())[:4])
