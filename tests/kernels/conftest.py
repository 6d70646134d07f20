"""Shared by the tests of kernels: devices, poisoned memory, and the error of eager torch as the yardstick.

The tests run twice on a CPU: with the torch references, and with the Triton programs under Triton's
interpreter (the second run of `make test`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from policysmith.components.kernels.dispatch import INTERPRETED

Inputs = dict[str, Tensor | None]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def references() -> None:
    """Skip a test of the torch references under the interpreter."""
    if INTERPRETED:
        pytest.skip("of the references")


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Memory that is allocated and not written holds NaN."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def compare(device: str) -> Callable[..., None]:
    """`compare(fused, reference, draws, dtype)`: outputs and gradients, beside the reference in float64.

    The relative error, over all draws of the inputs, is at most half again that of the reference in `dtype`, or within
    two units in the last place of float32. Two runs give the same bits.
    """

    def results(function: Callable[..., Any], inputs: Inputs, dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(1)
        given = {k: None if v is None else v.to(dtype).requires_grad_() for k, v in inputs.items()}
        outputs = function(**given)
        outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
        against = [torch.randn(out.shape).to(out.device, out.dtype) for out in outputs]
        leaves = [value for value in given.values() if value is not None]
        gradients = torch.autograd.grad(outputs, leaves, against)
        return [value.detach() for value in (*outputs, *gradients)]

    def errors(
        fused: Callable[..., Any], reference: Callable[..., Any], inputs: Inputs, dtype: torch.dtype
    ) -> list[tuple[float, float]]:
        inputs = {k: None if v is None else v.to(device, dtype) for k, v in inputs.items()}
        exact = results(reference, inputs, torch.float64)
        eager, ours, again = (results(f, inputs, dtype) for f in (reference, fused, fused))
        found = []
        for want, theirs, got, same in zip(exact, eager, ours, again, strict=True):
            assert torch.equal(got, same)
            assert (got.shape, got.dtype) == (theirs.shape, theirs.dtype)
            size = want.norm().clamp_min(1e-30)
            found.append(tuple(((x.double() - want).norm() / size).item() for x in (got, theirs)))
        return found

    def check(
        fused: Callable[..., Any], reference: Callable[..., Any], draws: list[Inputs], dtype: torch.dtype
    ) -> None:
        truncates = INTERPRETED and dtype == torch.bfloat16  # the interpreter does not round to nearest
        factor = 4.0 if truncates else 1.5
        squares = torch.tensor([errors(fused, reference, inputs, dtype) for inputs in draws]).square()
        for index, (error, yardstick) in enumerate(squares.mean(0).sqrt().tolist()):
            assert error <= max(factor * yardstick, 2.0 * torch.finfo(torch.float32).eps), (
                index,
                error,
                yardstick,
            )

    return check
