"""A copy of a policy for inference: on its device, in its precision, without gradients."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...components.base import Learner
from .. import compat
from ..policy import BasePolicyModel

Precision = Literal["auto", "float32", "bfloat16"]


def copy_for(policy: BasePolicyModel, device: torch.device, dtype: torch.dtype | None) -> BasePolicyModel:
    """Return a copy of a policy on a device, in evaluation mode, that needs no gradients.

    Floating-point weights and saved buffers are cast to `dtype`, except in the parts' `float32`; None casts
    nothing. Tensors that are neither moved nor cast are shared, so that they follow the policy's training.
    """
    kept = _kept(policy)
    unsaved = {
        id(module._buffers[name])
        for module in policy.modules()
        for name in compat.unsaved_buffer_names(module)
        if module._buffers.get(name) is not None
    }
    known: dict[int, Any] = {}
    collator = getattr(policy, "_collator", None)
    if collator is not None:
        known[id(collator)] = collator
    for tensor in (*policy.parameters(), *policy.buffers()):
        plain = tensor.is_floating_point() and not compat.is_wrapper_tensor(tensor)
        cast = dtype if plain and id(tensor) not in kept and id(tensor) not in unsaved else None
        moved = tensor.detach().to(device=device, dtype=cast)
        is_weight = isinstance(tensor, nn.Parameter)
        known[id(tensor)] = nn.Parameter(moved, requires_grad=False) if is_weight else moved
    copied: BasePolicyModel = copy.deepcopy(policy, known)
    return copied.eval()


def _kept(policy: nn.Module) -> set[int]:
    """Return the identities of the tensors in modules that parts want in float32."""
    found: set[int] = set()
    for part in policy.modules():
        for name in part.float32 if isinstance(part, Learner) else ():
            tensors: list[Tensor] = []
            child = getattr(part, name)
            if isinstance(child, nn.Module):
                tensors = [*child.parameters(), *child.buffers()]
            elif child is not None:
                tensors = [child]
            found |= {id(tensor) for tensor in tensors}
    return found


__all__ = ["Precision", "copy_for"]
