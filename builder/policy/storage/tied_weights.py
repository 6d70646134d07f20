"""Tied weights. A checkpoint holds them once, so a declaration must tie them again after loading.

A module declares them as transformers' models do, by names relative to itself:

    _tied_weights_keys = {"decoder.weight": "embedding.weight"}      # target: source
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from ... import compat


def declared(policy: nn.Module) -> dict[str, str]:
    """Return `{target: source}` of the weights that modules in a policy declare as tied."""
    tied: dict[str, str] = {}
    for prefix, module in policy.named_modules():
        if not prefix:
            continue
        if isinstance(module, PreTrainedModel):
            own = module.get_expanded_tied_weights_keys(all_submodels=False)
        else:
            own = getattr(module, "_tied_weights_keys", None) or {}
        tied |= {f"{prefix}.{target}": f"{prefix}.{source}" for target, source in own.items()}
    return tied


def undeclared(policy: PreTrainedModel) -> list[tuple[str, str]]:
    """Return the pairs of names in the state dict that share memory without a declaration."""
    tied = policy.get_expanded_tied_weights_keys(all_submodels=True)
    first: dict[int, str] = {}
    found = []
    for name, value in policy.state_dict(keep_vars=True).items():
        origin = first.setdefault(compat.storage_id(value), name)
        if origin != name and tied.get(name, name) != tied.get(origin, origin):
            found.append((origin, name))
    return found
