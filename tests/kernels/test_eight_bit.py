"""Moments in eight bits: the law of their numbers, and the AdamW step that keeps them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policysmith.components.kernels import adamw as module
from policysmith.components.kernels.adamw import adamw_step, flat, reference
from policysmith.components.kernels.dispatch import INTERPRETED
from policysmith.components.kernels.eight_bit import BLOCK, decode, encode, rounding_words

MANTISSA = {False: 3, True: 4}
LOWEST = {False: 2.0**-117, True: 2.0**-53}
squares = pytest.mark.parametrize("squared", [False, True], ids=["m", "v"])
State = dict[str, Any]


def moments(seed: int, count: int, spread: float, size: float, squared: bool) -> Tensor:
    """Return numbers around 2^size over a range of 2^spread; with `squared`, like v, their squares."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp2(size - spread * torch.rand(count, generator=generator))
    values = sizes * torch.randn(count, generator=generator).sign()
    values[torch.rand(count, generator=generator) < 0.1] = 0.0
    return values.square() if squared else values


cases = given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 3 * BLOCK + 1),
    spread=st.floats(0.0, 40.0),
    size=st.floats(-60.0, 60.0),
    random=st.booleans(),
)


def words(count: int, random: bool, step: int = 3) -> Tensor | None:
    return rounding_words(torch.tensor(float(step)), 1, count) if random else None


@pytest.mark.usefixtures("references")
def test_codes_are_those_of_float8_e4m3_but_for_its_nan() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    found, theirs = decode(codes, torch.ones(1), squared=False), codes.view(torch.float8_e4m3fn).float()
    numbers = ~theirs.isnan()
    assert torch.equal(found[numbers], theirs[numbers])
    assert found[~numbers].tolist() == [480.0, -480.0]
    roots = decode(codes, torch.ones(1), squared=True).sqrt()
    exponent, mantissa = codes.double() // 16, codes.double() % 16
    assert torch.equal(
        roots.double(),
        torch.where(exponent > 0, torch.exp2(exponent - 7) * (1 + mantissa / 16), mantissa / 1024),
    )


@pytest.mark.usefixtures("references")
@squares
@cases
def test_what_was_decoded_is_encoded_as_it_is(
    squared: bool, seed: int, count: int, spread: float, size: float, random: bool
) -> None:
    values = moments(seed, count, spread, min(size, 0.0) if squared else size, squared)
    once = decode(*encode(values, words(count, random), squared=squared), squared=squared)
    assert torch.equal(once == 0, values == 0) or not squared
    for again in (None, words(count, True, step=4)):
        assert torch.equal(decode(*encode(once, again, squared=squared), squared=squared), once)


@pytest.mark.usefixtures("references")
@squares
@cases
def test_numbers_err_by_a_step_and_the_largest_of_a_block_by_less(
    squared: bool, seed: int, count: int, spread: float, size: float, random: bool
) -> None:
    values = moments(seed, count, spread, size, squared)
    codes, scales = encode(values, words(count, random), squared=squared)
    assert (codes.dtype, codes.shape, scales.shape) == (torch.uint8, values.shape, (-(-count // BLOCK),))
    found = decode(codes, scales, squared=squared)
    if squared:
        values, found = values.sqrt(), found.sqrt()
    relative = 2.0 ** -MANTISSA[squared] * (1.0 if random else 0.5)
    for block in range(len(scales)):
        part, ours = (x[block * BLOCK :][:BLOCK].double() for x in (values, found))
        scale = scales[block].item()
        steps = torch.maximum(relative * part.abs(), torch.tensor(relative * scale * 2.0**-6))
        steps = torch.where((part != 0) & squared, steps.clamp_min(scale * 2.0**-10), steps)
        assert ((ours - part).abs() <= steps * (1 + 1e-6)).all()
        largest = part.abs().max()
        assert largest <= scale * (496 if squared else 480)
        if scale > LOWEST[squared]:  # where numbers are normal in float32
            assert largest > scale * 240
            assert abs(ours.abs().max() - largest) <= relative * largest * (1 + 1e-6)


@pytest.mark.usefixtures("references")
@squares
def test_the_mean_of_many_is_exact(squared: bool) -> None:
    values = torch.cat([torch.linspace(0.0, 1.0, 200), torch.logspace(-5, 0, 56)])
    given, count = values.square() if squared else values, 4000
    total = torch.zeros(256, dtype=torch.float64)
    for step in range(count):
        found = decode(*encode(given, words(256, True, step), squared=squared), squared=squared)
        total += (found.sqrt() if squared else found).double()
    gap = torch.maximum(values, torch.tensor(2.0**-14)).double() * 2.0 ** -MANTISSA[squared]
    errors = (total / count - values) / (gap / 2 / count**0.5)
    above = values > 2.0**-17
    assert errors[above].abs().max() < 5.0
    assert errors[above].square().mean() < 1.5
    assert abs(errors[above].mean()) < 5.0 / above.sum() ** 0.5


@pytest.mark.usefixtures("references")
@squares
def test_a_block_of_zeros_stays_and_one_that_is_not_finite_is_nan(squared: bool) -> None:
    for bad in (float("inf"), float("nan")):
        values = torch.cat([torch.zeros(BLOCK), torch.ones(BLOCK), torch.ones(3)])
        values[BLOCK + 7] = bad
        found = decode(*encode(values, words(len(values), True), squared=squared), squared=squared)
        assert not found[:BLOCK].any()
        assert found[BLOCK : 2 * BLOCK].isnan().all()
        assert torch.equal(found[2 * BLOCK :], torch.ones(3))


@pytest.mark.usefixtures("references")
def test_no_v_vanishes_beside_a_large_one() -> None:
    values = torch.tensor([1e30, 1e-45, 1e-38, 1e-10, 0.0])
    for random in (False, True):
        found = decode(*encode(values, words(5, random), squared=True), squared=True)
        assert (found > 0).tolist() == [True, True, True, True, False]


@pytest.mark.usefixtures("references")
def test_random_words_differ_between_steps_tensors_and_numbers() -> None:
    found = torch.stack([rounding_words(torch.tensor(s), t, 4099) for s in (1.0, 2.0) for t in (0, 1)])
    assert found.shape == (4, 4099)
    assert len(found.unique()) > 4 * 4099 - 5
    assert abs(found.double().mean() / 2**31 - 1) < 0.03


SHAPES = ((7,), (3, 5), (2100,), (), (65, 67))
RATES, DECAYS, GROUPS = (1e-2, 3e-3), (0.1, 0.0), (0, 0, 1, 1, 0)


def state(device: str, dtype: torch.dtype) -> tuple[State, list[Tensor]]:
    """Return parameters and their state, and gradients over a wide range."""
    torch.manual_seed(3)
    parameters = [torch.randn(shape).to(device) for shape in SHAPES]
    gradients = [(torch.randn(s) * 10 ** (-6 * torch.rand(s))).to(device, dtype) for s in SHAPES]
    kept: State = {
        "parameters": parameters,
        "averages": [p + 0.1 for p in parameters],
        "shadows": [torch.full_like(p, float("nan"), dtype=torch.bfloat16) for p in parameters],
        "step": torch.tensor(0.0, device=device),
    }
    for name in ("first", "second"):
        kept[name] = [torch.zeros_like(p, dtype=torch.uint8) for p in parameters]
        kept[f"{name}_scales"] = [torch.zeros(-(-p.numel() // BLOCK), device=device) for p in parameters]
    return kept, gradients


def run(state: State, gradients: list[Tensor], bad: float = 0.0) -> None:
    rates, decays, clip, found = (
        torch.tensor(x, device=state["step"].device) for x in (RATES, DECAYS, 0.5, bad)
    )
    adamw_step(
        gradients=gradients, rates=rates, decays=decays, groups=GROUPS, clip=clip, found_inf=found,
        average_decay=0.6, **state,
    )  # fmt: skip


def run_reference(state: State, gradients: list[Tensor]) -> None:
    rates, decays, clip, found = (
        torch.tensor(x, device=state["step"].device) for x in (RATES, DECAYS, 0.5, 0.0)
    )
    reference(
        state["parameters"], gradients, state["first"], state["second"], state["averages"], state["shadows"],
        state["step"], rates, decays, list(GROUPS), clip, found, 0.9, 0.999, 1e-8, 0.6,
        state["first_scales"], state["second_scales"],
    )  # fmt: skip


def decoded(state: State, name: str) -> Tensor:
    pairs = zip(state[name], state[f"{name}_scales"], strict=True)
    return torch.cat([decode(flat(c), s, squared=name == "second") for c, s in pairs])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_step_is_the_references_and_twice_the_same(dtype: torch.dtype, device: str) -> None:
    (ours, gradients), (again, _), (theirs, _) = (state(device, dtype) for _ in range(3))
    for scale in (1.0, 2.0, 3.0):
        given = [g * scale for g in gradients]
        run(ours, given)
        run(again, given)
        run_reference(theirs, given)
    for name in ("parameters", "averages", "first", "second", "first_scales", "second_scales"):
        got, same, want = (torch.cat([x.flatten() for x in s[name]]) for s in (ours, again, theirs))
        assert torch.equal(got, same)
        if name in ("parameters", "averages"):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
        else:  # a sum that rounds otherwise falls on the other side of a random number once in a long while
            assert (got != want).float().mean() < 1e-3
    for name in ("first", "second"):
        torch.testing.assert_close(decoded(ours, name), decoded(theirs, name), rtol=0.15, atol=1e-9)
    copied = [p.bfloat16() for p in ours["parameters"]]
    for shadow, copy in zip(ours["shadows"], copied, strict=True):
        torch.testing.assert_close(shadow, copy, rtol=0.01 if INTERPRETED else 0.0, atol=0.0)


def test_the_first_step_is_that_of_float32_and_moments_are_its_rounded(device: str) -> None:
    ours, gradients = state(device, torch.float32)
    plain, _ = state(device, torch.float32)
    plain |= {name: [torch.zeros_like(p) for p in plain["parameters"]] for name in ("first", "second")}
    plain |= {"first_scales": [], "second_scales": []}
    run(ours, gradients)
    run(plain, gradients)
    for name in ("parameters", "averages"):
        for got, want in zip(ours[name], plain[name], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    for index, moment in enumerate(plain["first"]):
        found = decode(flat(ours["first"][index]), ours["first_scales"][index], squared=False)
        assert ((found - flat(moment)).abs() <= flat(moment).abs() / 8 + moment.abs().max() * 2.0**-16).all()


def test_where_something_is_not_finite_nothing_changes(device: str) -> None:
    ours, gradients = state(device, torch.float32)
    before, _ = state(device, torch.float32)
    run(ours, gradients)
    run(before, gradients)
    run(ours, [torch.full_like(g, float("nan")) for g in gradients], bad=1.0)
    for name, value in before.items():
        pairs = [(ours[name], value)] if isinstance(value, Tensor) else zip(ours[name], value, strict=True)
        assert all(torch.equal(x, y) for x, y in pairs), name


def test_a_nan_that_nobody_found_is_not_hidden_by_a_code(device: str) -> None:
    ours, gradients = state(device, torch.float32)
    gradients[2][300] = float("nan")
    run(ours, gradients)
    for name in ("first", "second"):
        found = decode(ours[name][2], ours[f"{name}_scales"][2], squared=name == "second")
        assert found[BLOCK : 2 * BLOCK].isnan().all()
        assert found[:BLOCK].isfinite().all()


def test_it_is_a_sound_operator(device: str) -> None:
    kept, gradients = state(device, torch.float32)
    scalars = [torch.tensor(x, device=device) for x in (RATES, DECAYS, 0.5, 0.0)]
    arguments = (
        kept["parameters"], gradients, kept["first"], kept["second"], kept["averages"], kept["shadows"],
        kept["step"], scalars[0], scalars[1], list(GROUPS), scalars[2], scalars[3], 0.9, 0.999, 1e-8, 0.6,
        kept["first_scales"], kept["second_scales"],
    )  # fmt: skip
    torch.library.opcheck(module._step, arguments)


@pytest.mark.gpu
def test_a_graph_captures_it_with_new_random_numbers_in_every_replay() -> None:
    (ours, gradients), (theirs, _) = (state("cuda", torch.float32) for _ in range(2))
    rates, decays, clip, found = (torch.tensor(x, device="cuda") for x in (RATES, DECAYS, 0.5, 0.0))

    def step(kept: State) -> None:
        adamw_step(
            gradients=gradients, rates=rates, decays=decays, groups=GROUPS, clip=clip, found_inf=found, **kept
        )

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step(ours)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(ours)
    for _ in range(2):
        graph.replay()
    for _ in range(3):
        step(theirs)
    for name in ("parameters", "first", "second", "first_scales", "second_scales"):
        assert all(torch.equal(x, y) for x, y in zip(ours[name], theirs[name], strict=True))
