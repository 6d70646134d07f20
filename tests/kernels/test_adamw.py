"""The AdamW step beside torch's fused AdamW and float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from policysmith.components.kernels import adamw as module
from policysmith.components.kernels.adamw import adamw_step, reference
from policysmith.components.kernels.dispatch import INTERPRETED

SHAPES = ((7,), (3, 5), (2100,), ())
RATES, DECAYS, GROUPS = (1e-2, 3e-3), (0.1, 0.0), (0, 0, 1, 1)
DECAY = 0.6


def state(device: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Return parameters and their state, with random values, away from the first step."""
    torch.manual_seed(3)
    parameters = [torch.randn(shape).to(device, dtype) for shape in SHAPES]
    return {
        "parameters": parameters,
        "first": [torch.randn_like(p) * 0.1 for p in parameters],
        "second": [torch.rand_like(p) * 0.1 for p in parameters],
        "averages": [p + 0.1 for p in parameters],
        "shadows": [torch.full_like(p, float("nan"), dtype=torch.bfloat16) for p in parameters],
        "step": torch.tensor(4.0, device=device, dtype=dtype),
    }


def gradients_of(step: int, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(10 + step)
    return [torch.randn(shape).to(device, dtype) for shape in SHAPES]


def run(state: dict[str, Any], gradients: list[Tensor], clip: float = 0.5, bad: float = 0.0) -> None:
    dtype, device = state["step"].dtype, state["step"].device
    clip_factor, found_inf, rates, decays = (
        torch.tensor(x, dtype=dtype, device=device) for x in (clip, bad, RATES, DECAYS)
    )
    adamw_step(
        gradients=gradients, rates=rates, decays=decays, groups=GROUPS, clip=clip_factor, found_inf=found_inf,
        average_decay=DECAY, **state,
    )  # fmt: skip


def test_it_is_torchs_adamw_with_average_and_copy(device: str) -> None:
    ours = state(device)
    for name in ("first", "second"):
        for value in ours[name]:
            value.zero_()
    ours["step"].zero_()
    parameters = [p.clone().requires_grad_() for p in ours["parameters"]]
    averages = [a.clone() for a in ours["averages"]]
    split = [[p for p, g in zip(parameters, GROUPS, strict=True) if g == group] for group in (0, 1)]
    groups = [
        {"params": s, "lr": rate, "weight_decay": decay}
        for s, rate, decay in zip(split, RATES, DECAYS, strict=True)
    ]
    theirs = torch.optim.AdamW(groups, fused=True)
    for step in range(1, 4):
        gradients = gradients_of(step, device)
        run(ours, gradients)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = 0.5 * gradient
        theirs.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1.0 - min(DECAY, (1 + step) / (10 + step)))
    assert ours["step"].item() == 3.0
    for index, parameter in enumerate(parameters):
        torch.testing.assert_close(ours["parameters"][index], parameter.detach(), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(ours["averages"][index], averages[index], atol=1e-6, rtol=1e-6)
        copied = ours["parameters"][index].bfloat16()
        torch.testing.assert_close(
            ours["shadows"][index], copied, rtol=0.01 if INTERPRETED else 0.0, atol=0.0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_errs_no_more_than_eager(dtype: torch.dtype, device: str) -> None:
    gradients = gradients_of(0, device, dtype)
    exact, ours, again = state(device, torch.float32), state(device), state(device)
    exact = {k: [x.double() for x in v] if isinstance(v, list) else v.double() for k, v in exact.items()}
    scalars = [torch.tensor(x, device=device) for x in (RATES, DECAYS, 0.5, 0.0)]
    eager = state(device)
    for each in (exact, eager):
        wide = [x.to(each["step"].dtype) for x in scalars]
        reference(
            each["parameters"], gradients, each["first"], each["second"], each["averages"], each["shadows"],
            each["step"], wide[0], wide[1], list(GROUPS), wide[2], wide[3], 0.9, 0.999, 1e-8, DECAY,
        )  # fmt: skip
    run(ours, gradients)
    run(again, gradients)
    for name in ("parameters", "first", "second", "averages"):
        want, got, same, theirs = (
            torch.cat([x.flatten() for x in s[name]]) for s in (exact, ours, again, eager)
        )
        assert torch.equal(got, same)
        error, yardstick = ((x.double() - want).norm() / want.norm() for x in (got, theirs))
        assert error <= max(1.5 * yardstick, torch.finfo(torch.float32).eps / 2), name


def test_a_gradient_that_is_not_finite_changes_nothing(device: str) -> None:
    ours, before = state(device), state(device)
    gradients = [torch.full_like(g, float("nan")) for g in gradients_of(0, device)]
    run(ours, gradients, bad=1.0)
    for name in ("parameters", "first", "second", "averages"):
        assert all(torch.equal(x, y) for x, y in zip(ours[name], before[name], strict=True))
    assert all(x.isnan().all() for x in ours["shadows"])
    assert ours["step"].item() == 4.0


def test_averages_and_shadows_may_be_left_out_and_strides_kept(device: str) -> None:
    ours, other = state(device), state(device)
    gradients = gradients_of(0, device)
    run(other, gradients)
    ours |= {"averages": [], "shadows": []}
    for name in ("parameters", "first", "second"):
        ours[name][1] = ours[name][1].t().contiguous().t()
    run(ours, gradients)
    assert all(torch.equal(x, y) for x, y in zip(ours["parameters"], other["parameters"], strict=True))


def test_it_is_a_sound_operator(device: str) -> None:
    given = state(device)
    scalars = [torch.tensor(x, device=device) for x in (RATES, DECAYS, 0.5, 0.0)]
    arguments = (
        given["parameters"], gradients_of(0, device), given["first"], given["second"], given["averages"],
        given["shadows"], given["step"], scalars[0], scalars[1], list(GROUPS), scalars[2], scalars[3], 0.9, 0.999,
        1e-8, DECAY, [], [],
    )  # fmt: skip
    torch.library.opcheck(module._step, arguments)


def test_it_compiles_without_a_break(device: str) -> None:
    ours, theirs = state(device), state(device)
    gradients = gradients_of(0, device)
    torch.compile(run, fullgraph=True, backend="aot_eager")(ours, gradients)
    run(theirs, gradients)
    assert all(torch.equal(x, y) for x, y in zip(ours["parameters"], theirs["parameters"], strict=True))


@pytest.mark.gpu
def test_a_graph_captures_it() -> None:
    ours, theirs, gradients = state("cuda"), state("cuda"), gradients_of(0, "cuda")
    scalars = [torch.tensor(x, device="cuda") for x in (RATES, DECAYS, 0.5, 0.0)]

    def step(state: dict[str, Any]) -> None:
        adamw_step(
            gradients=gradients, rates=scalars[0], decays=scalars[1], groups=GROUPS, clip=scalars[2],
            found_inf=scalars[3], average_decay=DECAY, **state,
        )  # fmt: skip

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step(ours)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(ours)
    graph.replay()
    for _ in range(2):
        step(theirs)
    assert all(torch.equal(x, y) for x, y in zip(ours["parameters"], theirs["parameters"], strict=True))
