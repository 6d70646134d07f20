"""AdamW step over many tensors: clipping, update, weight average and bfloat16 copies in two launches.

    g <- clip g        m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
    w <- (1 - lr decay) w - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)
    a <- d a + (1 - d) w        d = min(average_decay, (1 + t) / (10 + t))

AdamW is that of Loshchilov & Hutter (2019). The tensors stay in place: the program reads their addresses from
a table, which is rebuilt only when one has moved. A flat buffer would need no table, but would own the
weights, which modules, checkpoints and wrappers of modules expect to own. Moments are float32, or codes of
eight bits with scales as in `eight_bit`, decoded, updated and encoded in the same pass. A step changes v by a
thousandth, which rounding to nearest would lose; so rounding is random.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .dispatch import operator
from .eight_bit import decode, encode, rounding_words


def adamw_step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    step: Tensor,
    rates: Tensor,
    decays: Tensor,
    groups: Sequence[int],
    *,
    averages: Sequence[Tensor] = (),
    shadows: Sequence[Tensor] = (),
    first_scales: Sequence[Tensor] = (),
    second_scales: Sequence[Tensor] = (),
    clip: Tensor,
    found_inf: Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    average_decay: float = 0.999,
) -> None:
    """Update parameters, moments, averages and copies in place, and increment `step`.

    Nothing waits for the host, and a CUDA graph may capture a step that has run on the same tensors.

    Args:
        parameters: float32, each dense in memory.
        gradients: float32 or bfloat16, all of one dtype, also of the same order in memory if a graph captures
            the step.
        first: First moments, float32 of the same shapes and order; with `first_scales` uint8, in blocks by
            memory order.
        second: Second moments, likewise. Random numbers for rounding depend on the new `step`, the position
            of a tensor in these lists and that of a number in its tensor.
        step: Number of steps so far, a float32 scalar on the device.
        rates: Learning rates (G,) of the groups, on the device.
        decays: Weight decays (G,) of the groups, on the device.
        groups: Group of each parameter.
        averages: Weight averages, float32 of the same shapes and order, if any.
        shadows: Copies of the weights in bfloat16, if any.
        first_scales: Scales of first moments in eight bits, float32 (blocks of 256,).
        second_scales: Scales of second moments, likewise.
        clip: Factor of the gradients, a float32 scalar on the device.
        found_inf: float32 scalar on the device; unless it is 0, nothing changes, not even `step`.
        betas: Decay rates of the moments.
        eps: Term added to the denominator.
        average_decay: Largest decay rate of the averages.
    """
    _step(
        list(parameters), list(gradients), list(first), list(second), list(averages), list(shadows),
        step, rates, decays, list(groups), clip, found_inf, *betas, eps, average_decay,
        list(first_scales), list(second_scales),
    )  # fmt: skip


def memory_order(values: Tensor) -> tuple[int, ...]:
    """Return the relevant strides: dense tensors with equal ones store their values in the same order."""
    return tuple(stride for size, stride in zip(values.shape, values.stride(), strict=True) if size > 1)


def same_memory_order(one: Tensor, other: Tensor) -> bool:
    """Return whether dense tensors of one shape store their values in the same order."""
    return one.stride() == other.stride() or memory_order(one) == memory_order(other)


def flat(values: Tensor) -> Tensor:
    """Return a dense tensor as (n,), in memory order."""
    return values.as_strided((values.numel(),), (1,))


@torch.no_grad()
def reference(
    parameters: list[Tensor],
    gradients: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    averages: list[Tensor],
    shadows: list[Tensor],
    step: Tensor,
    rates: Tensor,
    decays: Tensor,
    groups: list[int],
    clip: Tensor,
    found_inf: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    average_decay: float,
    first_scales: Sequence[Tensor] = (),
    second_scales: Sequence[Tensor] = (),
) -> None:
    """Compute the step in plain torch, tensor by tensor."""
    keeps = found_inf == 0
    step.add_(keeps)
    exact = step.double()
    bias1, bias2 = 1.0 - beta1**exact, 1.0 - beta2**exact
    weight = 1.0 - ((1.0 + exact) / (10.0 + exact)).clamp_max(average_decay)
    for index, (value, gradient, m, v, group) in enumerate(
        zip(parameters, gradients, first, second, groups, strict=True)
    ):
        coded = bool(first_scales)
        old_m = _decode(m, first_scales[index], value, squared=False) if coded else m
        old_v = _decode(v, second_scales[index], value, squared=True) if coded else v
        g = gradient.to(value.dtype) * clip
        new_m = old_m * beta1 + g * (1.0 - beta1)
        new_v = old_v * beta2 + g * g * (1.0 - beta2)
        size = (new_v.sqrt() / bias2.sqrt().to(value.dtype)).add_(eps)
        rate = rates[group]
        new = value * (1.0 - rate * decays[group]) - (rate / bias1.to(value.dtype)) * new_m / size
        changes = [(value, new)]
        if coded:
            words = rounding_words(step, index, value.numel())
            for moment, scales, changed, squared in (
                (m, first_scales[index], new_m, False),
                (v, second_scales[index], new_v, True),
            ):
                codes, powers = encode(flat(changed), words, squared=squared)
                changes += [(flat(moment), codes), (scales, powers)]
        else:
            changes += [(m, new_m), (v, new_v)]
        changes += [(averages[index], averages[index].lerp(new, weight.to(new.dtype)))] if averages else []
        changes += [(shadows[index], new.to(shadows[index].dtype))] if shadows else []
        for old, changed in changes:
            old.copy_(torch.where(keeps, changed, old))


def _decode(codes: Tensor, scales: Tensor, like: Tensor, *, squared: bool) -> Tensor:
    """Decode a moment, in the shape and order of its weight."""
    moment = torch.empty_like(like)
    flat(moment).copy_(decode(flat(codes), scales, squared=squared))
    return moment


_step = operator(
    "adamw",
    "step",
    "(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] first, Tensor(c!)[] second, Tensor(d!)[] averages, "
    "Tensor(e!)[] shadows, Tensor(f!) step, Tensor rates, Tensor decays, int[] groups, Tensor clip, Tensor found_inf, "
    "float beta1, float beta2, float eps, float average_decay, Tensor(g!)[] first_scales, Tensor(h!)[] second_scales) "
    "-> ()",
    reference,
    ("parameters", "first", "second", "averages", "shadows", "step", "first_scales", "second_scales"),
)
