"""One AdamW step over many tensors: clipping, update, weight average and bfloat16 copies in two launches.

    g <- clip g        m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
    w <- (1 - lr decay) w - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)
    a <- d a + (1 - d) w        d = min(average_decay, (1 + t) / (10 + t))

AdamW is that of Loshchilov & Hutter (2019). The tensors stay where they are: the program reads their addresses from a
table, which is made anew only when one has moved. One flat buffer would need no table, but would own the weights, and
modules, checkpoints and wrappers of modules expect to. Moments are float32, or codes of eight bits with scales, as in
`eight_bit`: decoded, brought forward, and encoded again in the same pass. What is added to v in a step is a thousandth of
it, and would be lost in rounding to nearest; so rounding is random.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .dispatch import operator
from .eight_bit import decode, encode, random_words


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
    """Update parameters, moments, averages and shadows in place, and count `step` up.

    parameters, `first` and `second` moments and averages are float32 of the same shapes and `order`, each dense in
    memory; gradients are float32 or bfloat16, all alike, in the same order too where a graph captures the step; shadows
    are bfloat16. averages and shadows may be left out. With `first_scales` and `second_scales`, float32 (blocks of 256,),
    the moments are uint8 of the same shapes and order, in blocks as they lie in memory; they are rounded by random numbers
    that follow from the new `step`, the place of a tensor in these lists and that of a number in its tensor.
    groups tells for each parameter its place in `rates` (G,) and `decays` (G,), the learning rates and weight decays.
    `step`, `clip`, the factor of the gradients, and `found_inf` are float32 scalars on the device, where the rates are
    too: nothing waits for the host, and a CUDA graph may capture it once it has run on the same tensors. Where
    `found_inf` is not 0, nothing changes, not even `step`.
    """
    _step(
        list(parameters), list(gradients), list(first), list(second), list(averages), list(shadows),
        step, rates, decays, list(groups), clip, found_inf, *betas, eps, average_decay,
        list(first_scales), list(second_scales),
    )  # fmt: skip


def order(values: Tensor) -> tuple[int, ...]:
    """Strides that matter: dense tensors alike in them hold their values in one order."""
    return tuple(stride for size, stride in zip(values.shape, values.stride(), strict=True) if size > 1)


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether dense tensors of one shape hold their values in one order."""
    return one.stride() == other.stride() or order(one) == order(other)


def flat(values: Tensor) -> Tensor:
    """A dense tensor (n,), as it lies in memory."""
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
    """The same in plain torch, tensor by tensor."""
    keeps = found_inf == 0
    step.add_(keeps)
    exact = step.double()
    bias1, bias2 = 1.0 - beta1**exact, 1.0 - beta2**exact
    weight = 1.0 - ((1.0 + exact) / (10.0 + exact)).clamp_max(average_decay)
    for index, (value, gradient, m, v, group) in enumerate(
        zip(parameters, gradients, first, second, groups, strict=True)
    ):
        coded = bool(first_scales)
        old_m = _decoded(m, first_scales[index], value, squared=False) if coded else m
        old_v = _decoded(v, second_scales[index], value, squared=True) if coded else v
        g = gradient.to(value.dtype) * clip
        new_m = old_m * beta1 + g * (1.0 - beta1)
        new_v = old_v * beta2 + g * g * (1.0 - beta2)
        size = (new_v.sqrt() / bias2.sqrt().to(value.dtype)).add_(eps)
        rate = rates[group]
        new = value * (1.0 - rate * decays[group]) - (rate / bias1.to(value.dtype)) * new_m / size
        changes = [(value, new)]
        if coded:
            words = random_words(step, index, value.numel())
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


def _decoded(codes: Tensor, scales: Tensor, like: Tensor, *, squared: bool) -> Tensor:
    """The moment, in the shape and order of its weight."""
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
