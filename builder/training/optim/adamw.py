"""AdamW with its parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm

from ....schemas.errors import TrainingError
from ....schemas.recipe import OptimizerSection, ScheduleSection, TrainingSection
from ..distributed.sharding import local
from .ema import WeightAverage
from .fused_adamw import FusedAdamW

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, _BatchNorm)
_VECTORS = ("pos_embed", "position", "cls_token", "reg_token", "mask_token")


def decays(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to norms, biases, embeddings, positions, class tokens, or a single vector."""
    if isinstance(module, (*_NORMS, nn.Embedding)) or any(mark in name for mark in _VECTORS):
        return False
    if name.rpartition(".")[2] == "bias":  # one for each robot is a matrix
        return False
    return parameter.ndim > 1 and parameter.numel() > parameter.shape[-1]


def parameter_groups(model: nn.Module, section: OptimizerSection) -> list[dict[str, object]]:
    """Groups of trainable parameters, by first matching pattern and by decay; each has its `lr_scale`."""
    groups: dict[tuple[str, bool], dict[str, object]] = {}
    for module, name, parameter in _parameters(model):
        if not parameter.requires_grad:
            continue
        settings = next((g for g in section.groups if fnmatch.fnmatchcase(name, g.match)), None)
        pattern = settings.match if settings is not None else ""
        decay = decays(module, name, parameter)
        weight_decay = section.weight_decay
        if settings is not None and settings.weight_decay is not None:
            weight_decay = settings.weight_decay
        group = groups.setdefault(
            (pattern, decay),
            {
                "params": [],
                "names": [],
                "weight_decay": weight_decay if decay else 0.0,
                "lr_scale": settings.lr_scale if settings is not None else 1.0,
            },
        )
        group["params"].append(parameter)  # type: ignore[attr-defined]
        group["names"].append(name)  # type: ignore[attr-defined]
    return list(groups.values())


def adamw(
    model: nn.Module, section: OptimizerSection, average: WeightAverage | None = None, *, bf16: bool = False
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of a model on its device.

    On a GPU, for `bf16`, for states in eight bits, and for weights that are spread over processes, it is the one that also
    averages weights and keeps their copies; otherwise torch's own. Raises TrainingError where the former meets weights
    that are not float32.
    """
    beta1, beta2 = section.betas
    groups = parameter_groups(model, section)
    for group in groups:
        group["lr"] = section.lr * group["lr_scale"]  # type: ignore[operator]
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    eight_bit = section.states == "8bit"
    if bf16 or eight_bit or any(isinstance(p, DTensor) or p.is_cuda for _, p in trained):
        for name, parameter in trained:
            if parameter.dtype != torch.float32:
                raise TrainingError(
                    f"`{name}` trains in {str(parameter.dtype).removeprefix('torch.')}; keep trained weights in float32, "
                    "such as by `.float()` where the policy is made: `training.precision: bf16` computes in bf16 by itself"
                )
        return FusedAdamW(
            groups,
            lr=section.lr,
            betas=(beta1, beta2),
            eps=section.eps,
            average=average,
            eight_bit=eight_bit,
        )
    return torch.optim.AdamW(groups, lr=section.lr, betas=(beta1, beta2), eps=section.eps, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next step of all groups take this learning rate, times the `lr_scale` of each."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    if isinstance(optimizer, FusedAdamW):
        optimizer.set_rates()


def clip(optimizer: torch.optim.Optimizer, limit: float | None) -> Tensor:
    """Global norm of the gradients, which the next fused step scales down to `limit` where it is larger.

    The step divides gradients by the optimiser's `grad_scale`, a tensor, in the pass that it makes anyway, so that they
    are not written once more and nothing waits for the norm. As torch.nn.utils.clip_grad_norm_ in what comes out.
    """
    if isinstance(optimizer, FusedAdamW):
        gradients = optimizer.gradients()
    else:
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
    norm = global_norm(gradients)
    if limit is not None:
        optimizer.grad_scale.copy_(((norm + 1e-6) / limit).clamp_min(1.0))  # type: ignore[attr-defined]
    return norm


@torch.no_grad()
def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Norm over all gradients together, of all processes, summed in float32 also where they are bfloat16."""
    alike: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        alike.setdefault(gradient.dtype, []).append(local(gradient))
    norms = [
        norm
        for dtype, some in alike.items()
        for norm in torch._foreach_norm(some, 2.0, torch.promote_types(dtype, torch.float32))
    ]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    if isinstance(gradients[0], DTensor):  # all of them are
        squared = total.square()
        torch.distributed.all_reduce(squared, group=gradients[0].device_mesh.get_group("shard"))
        total = squared.sqrt()
    return total


def learning_rate(step: int, steps: int, peak: float, schedule: ScheduleSection) -> float:
    """Rate of the update that follows `step` earlier ones, before any `lr_scale`.

    Rises linearly over `warmup` steps, then stays (`constant`) or falls to `final * peak` at the last of `steps`.
    """
    if step < schedule.warmup:
        return peak * (step + 1) / schedule.warmup
    if schedule.type == "constant":
        return peak
    progress = min((step - schedule.warmup) / max(steps - 1 - schedule.warmup, 1), 1.0)
    falling = 1.0 - progress if schedule.type == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (schedule.final + (1.0 - schedule.final) * falling)


def shortfall(section: TrainingSection) -> str | None:
    """Warning of a run that ends before its learning rate is at the peak; None for others."""
    warmup, steps = section.schedule.warmup, section.steps
    if warmup <= steps:
        return None
    return (
        f"`training.schedule.warmup` is {warmup} steps and the run has {steps}: the learning rate ends at "
        f"{steps / warmup:.0%} of `training.optimizer.lr`; shorten the warm-up or take more steps"
    )


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                yield module, f"{prefix}.{leaf}" if prefix else leaf, parameter
