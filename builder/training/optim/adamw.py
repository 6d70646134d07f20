"""AdamW as the training loop uses it, and the gradient norm that it clips by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ... import compat
from ..distributed.sharding import local
from .ema import WeightAverage


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW (Loshchilov & Hutter, 2019), with gradient clipping and a weight average.

    A step divides gradients by `grad_scale` and changes nothing where `found_inf` is not 0. Both are scalars
    on the device of the weights, so that nothing waits for the host. Every group needs an `lr_scale`.
    """

    grad_scale: Tensor
    found_inf: Tensor

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        average: WeightAverage | None = None,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=True)
        device = self.weights[0].device
        self.grad_scale, self.found_inf = torch.ones((), device=device), torch.zeros((), device=device)
        self._average = average

    @property
    def weights(self) -> list[nn.Parameter]:
        """All weights, in the order of the groups."""
        return [weight for group in self.param_groups for weight in group["params"]]

    @property
    def memory_note(self) -> str:
        """The memory that moments take, for the log; empty where there is nothing to say."""
        return ""

    def gradients(self) -> list[Tensor]:
        """Return the gradients that exist, in the order of the weights."""
        return [gradient for weight in self.weights if (gradient := weight.grad) is not None]

    def follow(self, copies: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """Take gradients from these bfloat16 copies of weights, and write the copies in every step."""
        if copies:
            raise NotImplementedError("copies of weights need FusedAdamW")

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of all groups, each times its `lr_scale`."""
        for group in self.param_groups:
            group["lr"] = rate * group["lr_scale"]

    def clip(self, limit: float | None) -> Tensor:
        """Return the global norm of the gradients, and let the next step scale them down to `limit`.

        The result is that of torch.nn.utils.clip_grad_norm_, but the gradients are scaled in the pass of the
        step.
        """
        norm = global_norm(self.gradients())
        if limit is not None:
            self.grad_scale.copy_(((norm + 1e-6) / limit).clamp_min(1.0))
        return norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all weights that have gradients, and then the average. A closure is not supported."""
        assert closure is None
        super().step()
        if self._average is not None and not self.found_inf:
            steps = max((int(state["step"]) for state in self.state.values()), default=0)
            self._average.update(steps)

    def step_without_effect(self) -> None:
        """Take a step that changes nothing, so that a graph can capture the next one on the same tensors."""
        found = self.found_inf
        self.found_inf = torch.ones_like(found)
        self.step()
        self.found_inf = found


@torch.no_grad()
def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all gradients together, over all processes, summed in float32 at least."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        by_dtype.setdefault(gradient.dtype, []).append(local(gradient))
    norms = [
        norm
        for dtype, group in by_dtype.items()
        for norm in compat.foreach_norm(group, torch.promote_types(dtype, torch.float32))
    ]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    if isinstance(gradients[0], DTensor):  # then all are
        squared = total.square()
        torch.distributed.all_reduce(squared, group=gradients[0].device_mesh.get_group("shard"))
        total = squared.sqrt()
    return total
