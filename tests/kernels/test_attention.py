"""Attention of few queries beside float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from policysmith.components.kernels import attention as module
from policysmith.components.kernels.attention import attention, reference

SHAPES = ((3, 5, 7, 2, 8), (1, 65, 70, 1, 6), (1, 49, 33, 2, 16), (2, 1, 2, 1, 3), (1, 130, 20, 1, 4))
"""Samples, queries, keys, heads and their width."""


PACKED = pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])
"""Keys and values as two tensors, or as one."""


def inputs_of(
    shape: tuple[int, ...], *, packed: bool = False, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    samples, queries, keys, heads, width = shape
    query, key, value = (
        torch.randn(samples, count, heads, width, dtype=dtype) for count in (queries, keys, keys)
    )
    if packed:
        return {"query": query, "key": torch.stack([key, value], dim=2), "value": None}
    return {"query": query, "key": key, "value": value}


def half_seen(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Hide other keys from each sample, and all from the last, if there are several."""

    def run(query: Tensor, key: Tensor, value: Tensor | None) -> Tensor:
        samples, keys = (torch.arange(n, device=query.device) for n in (len(query), key.shape[1]))
        hidden = (keys[:, None] + 2 * samples) % 3 == 1  # (keys, samples), read as it lies
        hidden[:, -1] |= len(query) > 1
        return function(query, key, value, ~hidden.T)

    return run


@pytest.mark.parametrize(
    ("packed", "dtype"),
    [(False, torch.float32), (True, torch.float32), (False, torch.bfloat16), (True, torch.float16)],
    ids=str,
)
def test_it_errs_no_more_than_eager(packed: bool, dtype: torch.dtype, compare: Callable[..., None]) -> None:
    compare(attention, reference, [inputs_of(shape, packed=packed) for shape in SHAPES], dtype)


@pytest.mark.parametrize(("packed", "dtype"), [(True, torch.bfloat16), (False, torch.float32)], ids=str)
def test_hidden_keys_change_nothing(packed: bool, dtype: torch.dtype, compare: Callable[..., None]) -> None:
    draws = [inputs_of(shape, packed=packed) for shape in SHAPES]
    compare(half_seen(attention), half_seen(reference), draws, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape", [(64, 49, 600, 24, 64), (64, 49, 49, 32, 48), (32, 197, 197, 12, 64)], ids=str
)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_it_errs_no_more_than_eager_at_the_size_of_a_policy(
    shape: tuple[int, ...], masked: bool, compare: Callable[..., None]
) -> None:
    functions = (half_seen(f) if masked else f for f in (attention, reference))
    compare(*functions, [inputs_of(shape, packed=True)], torch.bfloat16)


@PACKED
def test_a_query_that_sees_nothing_gathers_zeros_and_passes_no_gradient(packed: bool, device: str) -> None:
    inputs = inputs_of((2, 7, 7, 2, 8), packed=packed, dtype=torch.float32)
    given = {k: v.to(device).requires_grad_() for k, v in inputs.items() if v is not None}
    seen = torch.ones(2, 7, dtype=torch.bool, device=device)
    seen[1] = False
    out = attention(**given, seen=seen)
    assert not out[1].any()
    assert out[0].isfinite().all()
    for change in torch.autograd.grad((out + 1.0).square().sum(), [*given.values()]):
        assert change.isfinite().all()
        assert not change[1].any()
        assert change[0].any()


def test_large_scores_stay_finite(device: str) -> None:
    query, key, value = (
        100.0 * x.to(device) for x in inputs_of((1, 20, 40, 1, 16), dtype=torch.float32).values()
    )
    given = [x.requires_grad_() for x in (query, key, value)]
    out, exact = (f(*given) for f in (attention, reference))
    torch.testing.assert_close(out, exact, rtol=1e-3, atol=1e-2)
    for change in torch.autograd.grad(out.sum(), given):
        assert change.isfinite().all()


def test_slices_and_turned_tensors_are_read_as_they_lie(device: str) -> None:
    query, key, value = (x.to(device) for x in inputs_of((2, 9, 11, 2, 8), dtype=torch.float32).values())
    heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    wide = torch.cat([query, query], dim=-1)[..., :8]
    last_first = value.transpose(-1, -2).contiguous().transpose(-1, -2)
    against = torch.randn_like(query)
    as_heads = against.transpose(1, 2).contiguous().transpose(1, 2)
    apart = torch.stack([value, value], dim=2)[:, :, 1]

    def results(query: Tensor, key: Tensor, value: Tensor, against: Tensor = against) -> list[Tensor]:
        given = [x.detach().requires_grad_() for x in (query, key, value)]
        out = attention(*given)
        return [out, *torch.autograd.grad(out, given, against)]

    expected = results(query, key, value)
    for found in (
        results(*heads_first),
        results(wide, key, last_first),
        results(query, key, apart),
        results(query, key, value, as_heads),
    ):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_the_scale_may_be_given(device: str) -> None:
    given = [x.to(device) for x in inputs_of((2, 5, 7, 2, 8), dtype=torch.float32).values()]
    torch.testing.assert_close(attention(*given, scale=0.9), reference(*given, scale=0.9))


def test_it_says_what_it_is_not_made_for(device: str) -> None:
    for shape in ((1, 257, 3, 1, 8), (1, 3, 3, 1, 129)):
        with pytest.raises(ValueError, match="made for up to 256 queries"):
            attention(*(x.to(device) for x in inputs_of(shape).values()))


@PACKED
def test_its_operations_are_counted_as_those_of_torch(packed: bool, device: str) -> None:
    counts, keys = [], 7
    for function in (attention, reference):
        inputs = inputs_of((2, 5, keys, 2, 8), packed=packed).values()
        given = [None if x is None else x.to(device).bfloat16().requires_grad_() for x in inputs]
        with FlopCounterMode(display=False) as counter:
            function(*given).sum().backward()
        counts.append(counter.get_total_flops())
    forward = 2 * 2 * (2 * 2 * 5 * keys * 8)  # two products
    assert counts[0] == forward + 5 * forward // 2
    if device == "cuda":  # torch does not count what a CPU does
        assert counts[1] == counts[0]


def test_shapes_must_fit(device: str) -> None:
    query, key, value = (x.to(device) for x in inputs_of((2, 5, 7, 2, 8)).values())
    seen = torch.ones(2, 7, dtype=torch.bool, device=device)
    both = torch.stack([key, value], dim=2)
    wrong = [
        (query[:1], key, value),
        (query, key[:1], value[:1]),
        (query, key, value[..., :4]),
        (query, key[:, :, :1], value[:, :, :1]),
        (query, key, value, seen[:1]),
        (query, key, value, seen[:, :5]),
        (query, both[:, :, :1], None),
        (query, both, value),
        (query, key),
        (both, key, value),
        (query, key.half(), value.half()),
        (query, key, value.half()),
        (query, both.half()),
    ]
    for given in wrong:
        with pytest.raises(ValueError, match="do not fit"):
            attention(*given)


@pytest.mark.usefixtures("references")
@PACKED
def test_gradients_in_float64(packed: bool) -> None:
    inputs = inputs_of((2, 4, 5, 2, 3), packed=packed)
    given = {k: v.requires_grad_() for k, v in inputs.items() if v is not None}
    seen = torch.tensor([[True, False, True, True, True], [False] * 5])

    def function(*values: Tensor) -> Tensor:
        return attention(**dict(zip(given, values, strict=True)), seen=seen)

    assert torch.autograd.gradcheck(function, tuple(given.values()))


@pytest.mark.parametrize(
    ("packed", "masked", "dtype"),
    [(False, True, torch.float32), (True, False, torch.float32), (True, True, torch.bfloat16)],
    ids=str,
)
def test_it_is_a_sound_operator(packed: bool, masked: bool, dtype: torch.dtype, device: str) -> None:
    inputs = inputs_of((2, 5, 5, 2, 3), packed=packed, dtype=dtype)
    query, key, value = (None if x is None else x.to(device).requires_grad_() for x in inputs.values())
    seen = torch.ones(2, 5, dtype=torch.bool, device=device) if masked else None
    torch.library.opcheck(module._forward, (query, key, value, seen, 0.5))


def test_it_compiles_without_a_break(device: str) -> None:
    inputs = inputs_of((2, 4, 5, 2, 3), dtype=torch.float32).values()
    given = [x.to(device).requires_grad_() for x in inputs]

    def loss(*given: Tensor) -> Tensor:
        return attention(*given).tanh().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours, theirs = (torch.autograd.grad(f(*given), given) for f in (compiled, loss))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
