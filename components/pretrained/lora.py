"""Low-rank adapters beside the layers of a backbone (LoRA; Hu et al., 2022), by peft."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from ...schemas.errors import SpecError, WeightsError
from ...schemas.part import LoraSection

_ADAPTABLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def adapt(backbone: nn.Module, options: LoraSection) -> None:
    """Put an adapter beside every layer that is asked for. They add nothing until they have been trained; all else rests.

    Raises SpecError for a pattern that matches no layer, and where there is none to adapt.
    """
    chosen = _chosen(adaptable(backbone), options)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # a factor: any number will do
        lora_dropout=options.dropout,
        target_modules="|".join(re.escape(f"backbone.{name}") for name in chosen),
    )
    inject_adapter_in_model(config, nn.ModuleDict({"backbone": backbone}))
    backbone.train(backbone.training)
    rest(backbone)


def adaptable(backbone: nn.Module) -> dict[str, nn.Module]:
    """Layers that can have an adapter, by name.

    Not those inside torch's own attention, which reads their weights without calling them, not those that share their
    weight with another, and not grouped convolutions, into which no adapter can be merged.
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


def rest(backbone: nn.Module) -> None:
    """Stop the gradients of all but the adapters and what is the part's own; nothing where there are no adapters."""
    adapters = {
        id(parameter)
        for _, _, layer in _layers(backbone)
        for name in layer.adapter_layer_names
        for parameter in getattr(layer, name).parameters()
    }
    for name, parameter in backbone.named_parameters() if adapters else ():
        parameter.requires_grad_(id(parameter) in adapters or _is_own(backbone, name))


def _is_own(backbone: nn.Module, name: str) -> bool:
    return name.partition(".")[0] in getattr(backbone, "own", ())


def count(backbone: nn.Module) -> int:
    """Layers with an adapter."""
    return len(_layers(backbone))


@contextmanager
def set_aside(backbone: nn.Module) -> Iterator[None]:
    """Inside, layers stand where they would without adapters, so that weights find them under their own names."""
    layers = _layers(backbone)
    for parent, name, layer in layers:
        setattr(parent, name, layer.get_base_layer())
    try:
        yield
    finally:
        for parent, name, layer in layers:
            setattr(parent, name, layer)


def merge(backbone: nn.Module) -> None:
    """Add the adapters to the weights beside them, W + (alpha / rank) B A, and leave them out.

    Raises WeightsError for adapters that are not finite.
    """
    for parent, name, layer in _layers(backbone):
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise WeightsError(f"the adapter of `{name}` cannot be merged: {error}") from error
        setattr(parent, name, layer.get_base_layer())


def _layers(backbone: nn.Module) -> list[tuple[nn.Module, str, LoraLayer]]:
    """Every layer with an adapter, with the module that holds it and its name there."""
    return [
        (parent, name, child)
        for parent in backbone.modules()
        for name, child in parent.named_children()
        if isinstance(child, LoraLayer)
    ]


def _chosen(layers: Mapping[str, nn.Module], options: LoraSection) -> list[str]:
    """Names of the layers that are asked for."""
    if options.targets is None:
        linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
        if not linear:
            help = (
                f"name others under `targets`; there are {_examples(layers)}"
                if layers
                else "leave `lora` out"
            )
            raise SpecError(
                "it has no linear layer for an adapter", field="lora", label="nothing to adapt", help=help
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
                help=f"layers are named like {_examples(layers)}"
                if layers
                else "it has none; leave `lora` out",
            )
        found += matched
    return list(dict.fromkeys(found))


def _examples(names: Mapping[str, nn.Module]) -> str:
    """The first name of each last step, a few of them."""
    firsts: dict[str, str] = {}
    for name in names:
        firsts.setdefault(name.rpartition(".")[2], f"`{name}`")
    return ", ".join(list(firsts.values())[:4])
