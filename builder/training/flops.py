"""Floating-point operations of a training step, and what share of a GPU's peak they are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}
"""Dense bf16 operations a second by the makers' data sheets, by what a device's name contains."""


def count_flops(policy: nn.Module, batch: Mapping[str, Any]) -> int:
    """Operations of matrix products, convolutions and attention in a forward and a backward pass of one batch.

    A multiplication and an addition are two. Counted with tensors that have no values, so that nothing is computed, no
    random number drawn and no state changed. Raises what a policy raises that looks at values.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    hollow: dict[int, Any] = {}
    for parameter in policy.parameters():
        hollow[id(parameter)] = nn.Parameter(fake.from_tensor(parameter.detach()), parameter.requires_grad)
    for buffer in policy.buffers():
        hollow[id(buffer)] = fake.from_tensor(buffer)
    stand_in = copy.deepcopy(policy, hollow)
    given = {k: fake.from_tensor(v) if isinstance(v, Tensor) else v for k, v in batch.items()}
    with torch.random.fork_rng(), fake, FlopCounterMode(display=False) as counter:
        stand_in(given)["loss"].backward()
    total: int = counter.get_total_flops()
    return total


def peak(device: torch.device) -> float | None:
    """Dense bf16 operations a second that the device can do; None where that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in _PEAKS.items() if part in name), None)
