"""Gated residual, norm and modulation beside float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from policysmith.components.kernels import modulated_norm as module
from policysmith.components.kernels.dispatch import HAS_TRITON
from policysmith.components.kernels.modulated_norm import modulated_norm, reference

NAMES = ("residual", "branch", "gate", "shift", "scale", "weight", "bias")
USES = {
    "adaln": NAMES[:5],
    "first": ("residual", "shift", "scale"),
    "plain": ("residual",),
    "residual": ("residual", "branch", "weight", "bias"),
    "scaled": ("residual", "branch", "scale", "weight"),
    "all": NAMES,
}


def inputs_of(use: str, shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    samples, _, width = shape
    sizes = dict.fromkeys(NAMES[:2], shape) | dict.fromkeys(NAMES[2:5], (samples, width))
    sizes |= dict.fromkeys(NAMES[5:], (width,))
    return {name: torch.randn(sizes[name], dtype=dtype) if name in USES[use] else None for name in NAMES}


@pytest.mark.parametrize(
    ("use", "norm", "dtype"),
    [
        *((use, "layer", torch.float32) for use in USES),
        *((use, "rms", torch.float32) for use in ("adaln", "plain", "all")),
        *(("all", norm, torch.bfloat16) for norm in ("layer", "rms")),
        ("all", "layer", torch.float16),
    ],
    ids=str,
)
def test_it_errs_no_more_than_eager(
    use: str, norm: str, dtype: torch.dtype, compare: Callable[..., None]
) -> None:
    functions = (partial(f, norm=norm) for f in (modulated_norm, reference))
    compare(*functions, [inputs_of(use, shape) for shape in ((2, 3, 20), (1, 1, 37), (3, 2, 130))], dtype)


@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
@pytest.mark.parametrize("programs", [1, 6])
def test_sums_over_tokens_do_not_depend_on_their_split(
    programs: int, compare: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "policysmith.components.kernels.programs.modulated_norm._PROGRAMS"
    monkeypatch.setattr(place, programs)
    compare(modulated_norm, reference, [inputs_of("all", (3, 5, 24))], torch.float32)


@pytest.mark.gpu
def test_it_errs_no_more_than_eager_at_the_size_of_a_policy(compare: Callable[..., None]) -> None:
    shapes = ((32, 49, 1536), (256, 7, 1000))
    compare(modulated_norm, reference, [inputs_of("all", shape) for shape in shapes], torch.bfloat16)


def test_modulation_may_be_a_slice(device: str) -> None:
    tokens, all_three = torch.randn(2, 3, 8, device=device), torch.randn(2, 24, device=device)
    branch = torch.randn(2, 3, 8, device=device)
    slices = all_three.chunk(3, dim=-1)
    ours, theirs = (f(tokens, branch, *slices) for f in (modulated_norm, reference))
    torch.testing.assert_close(ours, theirs)


def test_a_float32_residual_takes_a_bfloat16_branch(device: str) -> None:
    tokens = torch.randn(2, 3, 8, device=device, requires_grad=True)
    branch = torch.randn(2, 3, 8, device=device, dtype=torch.bfloat16, requires_grad=True)
    gate = torch.randn(2, 8, device=device, dtype=torch.bfloat16, requires_grad=True)
    found = []
    for function in (modulated_norm, reference):
        hidden, out = function(tokens, branch, gate)
        assert hidden.dtype == out.dtype == torch.float32
        gradients = torch.autograd.grad(out.square().sum() + hidden.sum(), (tokens, branch, gate))
        assert [g.dtype for g in gradients] == [torch.float32, torch.bfloat16, torch.bfloat16]
        found.append([hidden, out, *(g.float() for g in gradients)])
    torch.testing.assert_close(*found, atol=0.05, rtol=0.02)


def test_a_gate_needs_a_branch() -> None:
    with pytest.raises(ValueError, match="branch"):
        modulated_norm(torch.zeros(1, 1, 2), gate=torch.zeros(1, 2))


@pytest.mark.usefixtures("references")
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("use", USES)
def test_gradients_in_float64(use: str, norm: str) -> None:
    given = {k: v.requires_grad_() for k, v in inputs_of(use, (2, 2, 3)).items() if v is not None}

    def function(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden, out = modulated_norm(**dict(zip(given, values, strict=True)), norm=norm)
        return out, hidden * 2.0

    assert torch.autograd.gradcheck(function, tuple(given.values()))


@pytest.mark.parametrize(("use", "rms"), list(itertools.product(("adaln", "first", "all"), (False, True))))
def test_it_is_a_sound_operator(use: str, rms: bool, device: str) -> None:
    given = inputs_of(use, (2, 3, 5), torch.float32).values()
    arguments = [None if x is None else x.to(device).requires_grad_() for x in given]
    torch.library.opcheck(module._forward, (*arguments, rms, 1e-6))


def test_it_compiles_without_a_break(device: str) -> None:
    given = [
        None if x is None else x.to(device).requires_grad_()
        for x in inputs_of("adaln", (2, 3, 8), torch.float32).values()
    ]

    def loss(*values: Any) -> torch.Tensor:
        hidden, out = modulated_norm(*values)
        return (out.tanh() + hidden).sum()

    leaves = [x for x in given if x is not None]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours, theirs = (torch.autograd.grad(f(*given), leaves) for f in (compiled, loss))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
