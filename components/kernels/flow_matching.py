"""What flow matching does before and after its network: noisy actions, target and embedded time; and the masked error.

    x = s eps + (1 - s) a        target = eps - a  where t = s,  a - eps  where t = 1 - s

The path is the straight one of Lipman et al. (2023), with the noise level s; the time embedding is that of Ho et al.
(2020), as `components.layers.sinusoids`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..features import masked_mean
from ..layers import sinusoids
from .dispatch import operator

Ends = Literal["first", "both"]


def noisy_actions(
    actions: Tensor,
    noise: Tensor,
    level: Tensor,
    is_pad: Tensor,
    width: int,
    *,
    noise_at: Literal[0, 1] = 0,
    scale: float = 1000.0,
    longest: float = 10_000.0,
    ends: Ends = "first",
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy actions and target (B, H, A), and embedded time (B, width), float32.

    actions, of any float dtype, and noise, float32, (B, H, A); level (B,), float32; is_pad (B, H, A) is True where an
    action counts as 0. Noise is at time `noise_at`; `scale`, `longest` and `ends` are those of `sinusoids`.
    """
    given = (actions, noise, level, is_pad, width, noise_at == 1, scale, longest, ends == "both")
    noisy, target, embedded = _inputs(*given)
    return noisy, target, embedded


def masked_mse(predicted: Tensor, target: Tensor, is_pad: Tensor) -> Tensor:
    """Mean squared error, a float32 scalar, over the values where is_pad (B, H, A) is False; 0 where all are padding.

    predicted (B, H, A), of any float dtype, gets a gradient; target (B, H, A), float32, gets none.
    """
    loss: Tensor = _loss(predicted, target, is_pad)[0]
    return loss


def noisy_actions_reference(
    actions: Tensor,
    noise: Tensor,
    level: Tensor,
    is_pad: Tensor,
    width: int,
    noise_at_one: bool,
    scale: float,
    longest: float,
    both_ends: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain torch."""
    actions = actions.to(noise.dtype).masked_fill(is_pad, 0.0)
    at = level[:, None, None]
    noisy = at * noise + (1.0 - at) * actions
    target = noise - actions if noise_at_one else actions - noise
    time = level if noise_at_one else 1.0 - level
    ends: Ends = "both" if both_ends else "first"
    return noisy, target, sinusoids(time, width, scale, longest, ends)


def masked_mse_reference(predicted: Tensor, target: Tensor, is_pad: Tensor) -> Tensor:
    """The same in plain torch."""
    return masked_mean((predicted.to(target.dtype) - target) ** 2, is_pad)


def _loss_reference(predicted: Tensor, target: Tensor, is_pad: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the number of values that count, at least 1."""
    count = (~is_pad).sum().clamp_min(1).to(target.dtype)
    return masked_mse_reference(predicted, target, is_pad), count


def _loss_gradient_reference(
    d_loss: Tensor, predicted: Tensor, target: Tensor, is_pad: Tensor, count: Tensor
) -> Tensor:
    change = (predicted.to(target.dtype) - target) * (2.0 * d_loss / count)
    return change.masked_fill(is_pad, 0.0).to(predicted.dtype)


_inputs = operator(
    "flow_matching",
    "inputs",
    "(Tensor actions, Tensor noise, Tensor level, Tensor is_pad, SymInt width, bool noise_at_one, float scale, "
    "float longest, bool both_ends) -> (Tensor, Tensor, Tensor)",
    noisy_actions_reference,
)
_loss = operator(
    "flow_matching",
    "loss",
    "(Tensor predicted, Tensor target, Tensor is_pad) -> (Tensor, Tensor)",
    _loss_reference,
)
_loss_gradient = operator(
    "flow_matching",
    "loss_gradient",
    "(Tensor d_loss, Tensor predicted, Tensor target, Tensor is_pad, Tensor count) -> Tensor",
    _loss_gradient_reference,
)


@_inputs.register_fake
def _(
    actions: Tensor, noise: Tensor, level: Tensor, is_pad: Tensor, width: int, *_: Any
) -> tuple[Tensor, ...]:
    embedded = torch.empty(len(noise), width, dtype=torch.float32, device=noise.device)
    return noise.new_empty(noise.shape), noise.new_empty(noise.shape), embedded


@_loss.register_fake
def _(predicted: Tensor, target: Tensor, is_pad: Tensor) -> tuple[Tensor, Tensor]:
    return target.new_empty(()), target.new_empty(())


@_loss_gradient.register_fake
def _(d_loss: Tensor, predicted: Tensor, target: Tensor, is_pad: Tensor, count: Tensor) -> Tensor:
    return predicted.new_empty(predicted.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _gradients(ctx: Any, d_loss: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    return _loss_gradient(d_loss, *ctx.saved_tensors), None, None


_loss.register_autograd(_gradients, setup_context=_save)
