"""The optimizer of a run."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ....schemas.errors import TrainingError
from ....schemas.recipe import OptimizerSection
from .adamw import AdamW
from .ema import WeightAverage
from .fused_adamw import FusedAdamW
from .groups import parameter_groups


def build_optimizer(
    model: nn.Module, section: OptimizerSection, average: WeightAverage | None = None, *, bf16: bool = False
) -> AdamW:
    """Build AdamW for the trainable parameters of a model that is on its device.

    On a GPU, and for `bf16`, moments in eight bits or sharded weights, it is FusedAdamW.

    Raises:
        TrainingError: if FusedAdamW would train weights that are not float32.
    """
    groups = parameter_groups(model, section)
    for group in groups:
        group["lr"] = section.lr * group["lr_scale"]  # type: ignore[operator]
    beta1, beta2 = section.betas
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    eight_bit = section.states == "8bit"
    if not (bf16 or eight_bit or any(isinstance(p, DTensor) or p.is_cuda for _, p in trained)):
        return AdamW(groups, lr=section.lr, betas=(beta1, beta2), eps=section.eps, average=average)
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
