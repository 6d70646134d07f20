"""Group norm, Mish and FiLM beside float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from policysmith.components.kernels import group_norm_mish as module
from policysmith.components.kernels.group_norm_mish import group_norm_mish, reference

NAMES = ("x", "weight", "bias", "scale", "shift")
USES = {"film": NAMES, "shift": ("x", "weight", "bias", "shift"), "plain": NAMES[:3]}


def inputs_of(use: str, shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    sizes: dict[str, tuple[int, ...]] = {"x": shape}
    sizes |= dict.fromkeys(NAMES[1:3], shape[1:2]) | dict.fromkeys(NAMES[3:], shape[:2])
    return {name: torch.randn(sizes[name], dtype=dtype) if name in USES[use] else None for name in NAMES}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_errs_no_more_than_eager(use: str, dtype: torch.dtype, compare: Callable[..., None]) -> None:
    functions = (partial(f, groups=3) for f in (group_norm_mish, reference))
    compare(*functions, [inputs_of(use, shape) for shape in ((2, 15, 7), (1, 6, 1), (2, 12, 16))], dtype)


@pytest.mark.gpu
def test_it_errs_no_more_than_eager_at_the_size_of_a_policy(compare: Callable[..., None]) -> None:
    functions = (partial(f, groups=8) for f in (group_norm_mish, reference))
    compare(
        *functions, [inputs_of("film", shape) for shape in ((64, 512, 16), (64, 2048, 4))], torch.bfloat16
    )


def test_mish_is_exact_far_from_zero(device: str) -> None:
    x = torch.tensor([-1.0, 1.0], device=device).view(1, 1, 2).expand(1, 6, 2)
    weight = torch.tensor([1e-3, 1.0, 5.0, 15.0, 30.0, 80.0], device=device)
    bias = torch.zeros_like(weight)
    given = [y.clone().requires_grad_() for y in (x, weight, bias)]
    wide = [y.double().detach().requires_grad_() for y in given]
    ours, theirs = group_norm_mish(given[0], 1, *given[1:]), reference(wide[0], 1, *wide[1:])
    torch.testing.assert_close(ours.double(), theirs, atol=1e-7, rtol=2e-5)
    against = torch.autograd.grad(ours.sum(), given[1:]), torch.autograd.grad(theirs.sum(), wide[1:])
    for one, other in zip(*against, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-6, rtol=2e-5)


def test_film_may_be_a_slice_and_groups_must_share(device: str) -> None:
    x, both = torch.randn(2, 6, 5, device=device), torch.randn(2, 12, device=device)
    weight, bias = torch.randn(2, 6, device=device)
    ours, theirs = (f(x, 2, weight, bias, *both.chunk(2, dim=-1)) for f in (group_norm_mish, reference))
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match="share"):
        group_norm_mish(x, 4, weight, bias)


@pytest.mark.usefixtures("references")
@pytest.mark.parametrize("use", USES)
def test_gradients_in_float64(use: str) -> None:
    given = {k: v.requires_grad_() for k, v in inputs_of(use, (2, 4, 3)).items() if v is not None}

    def function(*values: torch.Tensor) -> torch.Tensor:
        return group_norm_mish(groups=2, **dict(zip(given, values, strict=True)))

    assert torch.autograd.gradcheck(function, tuple(given.values()))


@pytest.mark.parametrize("use", USES)
def test_it_is_a_sound_operator(use: str, device: str) -> None:
    given = inputs_of(use, (2, 4, 3), torch.float32).values()
    x, *rest = (None if y is None else y.to(device).requires_grad_() for y in given)
    torch.library.opcheck(module._forward, (x, 2, *rest, 1e-5))


def test_it_compiles_without_a_break(device: str) -> None:
    given = [y.to(device).requires_grad_() for y in inputs_of("film", (2, 4, 3), torch.float32).values()]

    def loss(x: Any, *rest: Any) -> torch.Tensor:
        return group_norm_mish(x, 2, *rest).tanh().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours, theirs = (torch.autograd.grad(f(*given), given) for f in (compiled, loss))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
