"""A bias, GELU and dropout beside float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from policysmith.components.kernels import gelu as module
from policysmith.components.kernels.dispatch import INTERPRETED
from policysmith.components.kernels.gelu import gelu, reference
from policysmith.components.kernels.philox import philox

SHAPES = ((3, 5), (2, 3, 21), (1, 520), (37, 8))
USES = {
    "exact": {},
    "tanh": {"tanh": True},
    "dropout": {"dropout": 0.3},
    "both": {"tanh": True, "dropout": 0.9},
}


def inputs_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {"values": 3.0 * torch.randn(shape, dtype=dtype), "bias": torch.randn(shape[-1], dtype=dtype)}


def used(function: Callable[..., Tensor], use: dict[str, Any]) -> Callable[..., Tensor]:
    def run(values: Tensor, bias: Tensor) -> Tensor:
        return function(values, bias, torch.tensor([2**61 + 12345], device=values.device), **use)

    return run


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_it_errs_no_more_than_eager(use: str, dtype: torch.dtype, compare: Callable[..., None]) -> None:
    functions = (used(f, USES[use]) for f in (gelu, reference))
    compare(*functions, [inputs_of(shape) for shape in SHAPES], dtype)


@pytest.mark.parametrize("use", USES)
def test_float32_errs_by_some_units_in_the_last_place(use: str, device: str) -> None:
    given = [x.to(device, torch.float32).requires_grad_() for x in inputs_of((9, 70)).values()]
    wide = [x.detach().double().requires_grad_() for x in given]
    out, exact = used(gelu, USES[use])(*given), used(reference, USES[use])(*wide)
    pairs = [
        (out, exact),
        *zip(*(torch.autograd.grad(y.sum(), x) for y, x in ((out, given), (exact, wide))), strict=True),
    ]
    for ours, theirs in pairs:
        assert (ours.double() - theirs).norm() <= 6e-7 * theirs.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("use", USES)
def test_it_errs_no_more_than_eager_at_the_size_of_a_policy(use: str, compare: Callable[..., None]) -> None:
    functions = (used(f, USES[use]) for f in (gelu, reference))
    compare(*functions, [inputs_of((64, 197, 3072))], torch.bfloat16)


@pytest.mark.parametrize("tanh", [False, True])
def test_tails_and_their_slopes_are_exact(tanh: bool, device: str) -> None:
    if device == "cpu" and not INTERPRETED:
        pytest.skip("of the programs; torch itself cancels digits here")
    values = torch.linspace(-12.0, 12.0, 2401, device=device)[None].requires_grad_()
    wide = values.detach().double().requires_grad_()
    bias = torch.zeros(2401, device=device)
    ours, theirs = gelu(values, bias, tanh=tanh), reference(wide, bias.double(), tanh=tanh)
    torch.testing.assert_close(ours.double(), theirs, rtol=2e-5, atol=1e-7)
    slopes = (torch.autograd.grad(y.sum(), x)[0] for y, x in ((ours, values), (theirs, wide)))
    torch.testing.assert_close(*(slope.double() for slope in slopes), rtol=1e-5, atol=1e-6)


def test_dropout_keeps_the_mean_and_follows_its_seed(device: str) -> None:
    values, bias = torch.full((64, 264), 5.0, device=device), torch.zeros(264, device=device)
    draws = [
        gelu(values, bias, torch.tensor([seed], device=device), dropout=0.25) for seed in (1, 1, 2, 2**40 + 1)
    ]
    assert torch.equal(draws[0], draws[1])
    for one in draws:
        dropped = (one == 0.0).double().mean().item()
        assert dropped == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / one.numel()) ** 0.5)
        torch.testing.assert_close(one[one != 0.0], torch.full_like(one[one != 0.0], 5.0 / 0.75))
    for other in draws[2:]:  # neither the same, nor the opposite
        both = ((draws[0] == 0.0) & (other == 0.0)).double().mean().item()
        assert both == pytest.approx(0.0625, abs=0.01)
    rows, columns = ((draws[0] == 0.0).double().mean(dim) for dim in (1, 0))
    assert rows.unique().numel() > 3
    assert columns.unique().numel() > 3


def test_what_is_kept_is_what_the_reference_keeps(device: str) -> None:
    values, seed = torch.full((8200, 8), 5.0, device=device), torch.tensor([0], device=device)
    ours, theirs = (f(values, values[0] * 0.0, seed, dropout=0.3) for f in (gelu, reference))
    torch.testing.assert_close(ours, theirs)
    halves = philox(
        seed, (torch.arange(8200, device=device), *3 * [torch.zeros(8200, dtype=torch.int64, device=device)])
    )
    assert any(
        (half == module.threshold(0.3)).any() for half in (halves & 0xFFFF, halves >> 16)
    )  # the last that is kept


def test_tensors_are_read_as_they_lie(device: str) -> None:
    values, bias = torch.randn(6, 9, device=device), torch.randn(2 * 6, device=device)[::2]
    given = [values.T.requires_grad_(), bias.requires_grad_()]
    dense = [x.detach().contiguous().requires_grad_() for x in given]
    outs = [gelu(*given), gelu(*dense)]
    torch.testing.assert_close(*outs)
    against = torch.randn_like(outs[0])
    for one, other in zip(
        *(torch.autograd.grad(y, x, against) for y, x in zip(outs, (given, dense), strict=True)), strict=True
    ):
        torch.testing.assert_close(one, other)
    torch.library.opcheck(module._forward, (*given, None, False, 0))


def test_long_columns_are_summed_up_to_the_end(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cuda" or INTERPRETED:
        monkeypatch.setattr("policysmith.components.kernels.programs.gelu._PROGRAMS", 2)
    values, bias = torch.randn(43, 5, device=device), torch.randn(5, device=device).requires_grad_()
    wide = bias.detach().double().requires_grad_()
    ours, theirs = (
        torch.autograd.grad(f(x, y).sum(), y)[0]
        for f, x, y in ((gelu, values, bias), (reference, values.double(), wide))
    )
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_nearly_all_may_be_dropped(device: str) -> None:
    values = torch.ones(4, 8, device=device)
    assert gelu(values, values[0], torch.tensor([1], device=device), dropout=1.0 - 1e-9).isfinite().all()


def test_a_bias_must_fit(device: str) -> None:
    for shape in ((), (1,), (2, 3)):
        with pytest.raises(ValueError, match="a bias of shape"):
            gelu(torch.randn(2, 3, device=device), torch.randn(shape, device=device))


def test_dropout_needs_a_seed(device: str) -> None:
    with pytest.raises(ValueError, match="seed"):
        gelu(torch.randn(2, 3, device=device), torch.randn(3, device=device), dropout=0.1)


def test_a_bias_may_have_another_precision(device: str) -> None:
    values, bias = torch.randn(4, 6, device=device).bfloat16(), torch.randn(6, device=device).requires_grad_()
    out = gelu(values, bias)
    (change,) = torch.autograd.grad(out.sum(), bias)
    assert (out.dtype, change.dtype) == (torch.bfloat16, torch.float32)
    wide = bias.detach().double().requires_grad_()
    exact = reference(values.double(), wide)
    torch.testing.assert_close(out.double(), exact.detach(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(change.double(), *torch.autograd.grad(exact.sum(), wide), rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("references")
@pytest.mark.parametrize("use", USES)
def test_gradients_in_float64(use: str) -> None:
    given = tuple(x.requires_grad_() for x in inputs_of((2, 3, 5)).values())
    assert torch.autograd.gradcheck(used(gelu, USES[use]), given)


@pytest.mark.parametrize("dropped", [0, 1000])
def test_it_is_a_sound_operator(dropped: int, device: str) -> None:
    given = (x.to(device).requires_grad_() for x in inputs_of((2, 3, 5), torch.float32).values())
    values, bias = given
    for halved in (values, values.detach().bfloat16().requires_grad_()):
        torch.library.opcheck(
            module._forward, (halved, bias, torch.tensor([3], device=device), True, dropped)
        )


def test_it_compiles_without_a_break(device: str) -> None:
    given = [x.to(device).requires_grad_() for x in inputs_of((2, 3, 5), torch.float32).values()]
    loss = partial(_loss, seed=torch.tensor([5], device=device))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours, theirs = (torch.autograd.grad(f(*given), given) for f in (compiled, loss))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def _loss(values: Tensor, bias: Tensor, seed: Tensor) -> Tensor:
    return gelu(values, bias, seed, dropout=0.5).tanh().sum()
