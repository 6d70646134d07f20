"""Layers compute the same with fused operators in them, and only what these can do is replaced."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._dynamo import lookup_backend
from torch.profiler import ProfilerActivity, profile
from transformers import ViTConfig, ViTModel

from policysmith.builder import compat
from policysmith.builder.training.speed.compilation import compile_layers
from policysmith.builder.training.speed.fx import passes
from policysmith.components.layers.recomputation import recompute

from .traced_layers import LAYERS, TOKENS, WIDTH, Traced, vit_layer


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_errs_no_more_with_fused_operators(kind: str, device: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]().to(device)
    tokens = torch.randn(2, TOKENS, WIDTH, device=device)
    against = torch.randn_like(tokens)

    def results(layer: nn.Module, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        given = tokens.to(dtype).requires_grad_()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.float32):
            out = layer(given)
            out = out if isinstance(out, Tensor) else out[0]
        leaves = [given, *layer.parameters()]
        return [out.detach(), *torch.autograd.grad((out * against).sum(), leaves)]

    exact = results(copy.deepcopy(layer).double(), torch.float64)
    plain = results(layer)
    traced = Traced()
    layer.compile(backend=traced)
    ours = results(layer)
    assert "policysmith.gelu_forward" in traced.code
    assert "policysmith.attention_forward" in traced.code
    assert "nn.gelu" not in traced.code
    assert "scaled_dot_product" not in traced.code
    size = sum(x.square().sum() for x in exact)
    errors = [
        (sum((x.double() - y).square().sum() for x, y in zip(found, exact, strict=True)) / size).sqrt().item()
        for found in (ours, plain)
    ]
    assert errors[0] <= 1.5 * errors[1]
    assert errors[1] < 0.02


def found(function: Callable[..., Tensor], *given: Tensor) -> int:
    """Return the number of operators that are put into a function, after comparing its results."""
    torch._dynamo.reset()
    traced = Traced()
    expected = function(*given)
    ours = torch.compile(function, backend=traced)(*given)
    assert (ours - expected).norm() <= 0.02 * expected.norm()
    return traced.found


def read_by_two_layers(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    hidden = F.gelu(F.linear(x, w, b))
    return F.linear(hidden, w) + F.linear(hidden, w, b)


def also_added(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    hidden = F.gelu(F.linear(x, w, b))
    return F.linear(hidden, w) + hidden


def also_added_undropped(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    hidden = F.gelu(F.linear(x, w, b))
    return F.linear(F.dropout(hidden, 0.5, training=False), w) + hidden


def linear_read_twice(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    hidden = F.linear(x, w, b)
    return F.linear(F.gelu(hidden), w) + hidden


ACTIVATIONS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "gelu": (1, lambda x, w, b: F.linear(F.gelu(F.linear(x, w, b)), w, b)),
    "tanh": (1, lambda x, w, b: F.linear(F.gelu(F.linear(x, w, b), approximate="tanh"), w, b)),
    "by name": (1, lambda x, w, b: F.linear(F.gelu(F.linear(input=x, weight=w, bias=b)), w)),
    "read by two layers": (1, read_by_two_layers),
    "dropout at rest": (1, lambda x, w, b: F.linear(F.dropout(F.gelu(F.linear(x, w, b)), 0.5, False), w, b)),
    "no bias": (0, lambda x, w, b: F.linear(F.gelu(F.linear(x, w)), w, b)),
    "gated": (0, lambda x, w, b: F.linear(F.gelu(F.linear(x, w, b)) * F.linear(x, w), w)),
    "also added": (0, also_added),
    "linear read twice": (0, linear_read_twice),
    "nothing after": (0, lambda x, w, b: F.gelu(F.linear(x, w, b))),
    "all dropped": (0, lambda x, w, b: F.linear(F.dropout(F.gelu(F.linear(x, w, b)), 1.0), w, b)),
    "input by name": (1, lambda x, w, b: F.linear(F.gelu(input=F.linear(x, w, b)), w)),
    "read undropped": (0, also_added_undropped),
    "one bias for all": (0, lambda x, w, b: F.linear(F.gelu(F.linear(x, w, b[:1])), w)),
    "relu": (0, lambda x, w, b: F.linear(F.relu(F.linear(x, w, b)), w, b)),
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_only_activations_between_linear_layers_are_replaced(kind: str, device: str) -> None:
    torch.manual_seed(0)
    expected, function = ACTIVATIONS[kind]
    x, w, b = (torch.randn(*shape, device=device).bfloat16() for shape in ((5, 8), (8, 8), (8,)))
    assert found(function, x, w, b) == expected
    assert found(function, x.float(), w.float(), b.float()) == 0


def test_other_halves_have_them_and_parts_decide(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, b = (torch.randn(*shape, device=device).half() for shape in ((5, 8), (8, 8), (8,)))
    assert found(ACTIVATIONS["gelu"][1], x, w, b) == 1
    monkeypatch.setattr(passes, "uses_kernel", lambda values: False)
    assert found(ACTIVATIONS["gelu"][1], x, w, b) == 0


@pytest.mark.parametrize("kind", ["none", "tanh"])
def test_gelu_stays_exact_or_approximate(kind: str, device: str) -> None:
    x, w, b = (torch.randn(*shape, device=device).bfloat16() for shape in ((5, 8), (8, 8), (8,)))
    traced = Traced()
    torch.compile(lambda x: F.linear(F.gelu(F.linear(x, w, b), approximate=kind), w), backend=traced)(x)
    assert f", None, {kind == 'tanh'}, 0)" in traced.code


def test_dropout_is_drawn_anew_each_time_and_from_the_seed(device: str) -> None:
    x, w, b = (torch.full(shape, 1.0, device=device).bfloat16() for shape in ((64, 64), (64, 64), (64,)))
    eye = torch.eye(64, device=device).bfloat16()
    for rate, layer in {
        0.25: lambda x, w, b: F.linear(F.dropout(F.gelu(F.linear(x, w, b)), 0.25, True), eye),
        0.5: lambda x, w, b: F.linear(F.dropout(F.gelu(F.linear(x, w, b))), eye),
    }.items():
        torch._dynamo.reset()
        traced = Traced()
        compiled = torch.compile(layer, backend=traced)
        torch.manual_seed(0)
        draws = [compiled(x, w, b) for _ in range(4)]
        torch.manual_seed(0)
        assert torch.equal(compiled(x, w, b), draws[0])
        assert traced.found == 1
        assert not any(torch.equal(draws[i], draws[j]) for i in range(4) for j in range(i))
        for draw in draws:
            assert (draw == 0.0).double().mean().item() == pytest.approx(rate, abs=0.04)
            torch.testing.assert_close(draw.double().mean().item(), 65.0, rtol=0.06, atol=0.0)


def test_layers_may_differ_in_dropout(device: str) -> None:
    torch.manual_seed(0)
    first, second = (
        nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(rate), nn.Linear(8, 8)).to(device).bfloat16()
        for rate in (0.1, 0.9)
    )
    x = torch.randn(500, 8, device=device).bfloat16()
    traced = Traced()
    for layer in (first, second):
        layer.compile(backend=traced)
        layer(x)
    first.eval()
    assert torch.equal(first(x), first(x))


def changed_between(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = F.linear(x, w, b)
    w = w.clone()
    w.mul_(2.0)
    return F.linear(F.gelu(h), w)


def changed_beside(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = x.clone()
    h.add_(1.0)
    return F.linear(F.gelu(F.linear(x, w, b)), w) + 2.0 * h


def weight_changed_between(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    w = w.clone()
    h = F.linear(x, w, b)
    w.mul_(2.0)
    return F.linear(F.gelu(h), w)


@pytest.mark.parametrize("function", [changed_between, changed_beside, weight_changed_between])
def test_what_changes_in_place_stays_where_it_is(function: Callable[..., Tensor], device: str) -> None:
    torch.manual_seed(0)
    x, w, b = (torch.randn(*shape, device=device).bfloat16() for shape in ((5, 8), (8, 8), (8,)))
    assert found(function, x, w, b) == (1 if function is changed_beside else 0)


def test_gradients_stop_where_they_did(device: str) -> None:
    x, w, b = (torch.randn(*s, device=device).bfloat16().requires_grad_() for s in ((5, 8), (8, 8), (8,)))

    def half(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            h = F.linear(x, w, b)
        return F.linear(F.gelu(h), w)

    out = torch.compile(half, backend=Traced())(x, w, b)
    gradients = torch.autograd.grad(out.sum(), [x, w, b], allow_unused=True)
    assert [gradient is None for gradient in gradients] == [True, False, True]


def test_buffers_of_a_layer_still_change(device: str) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.gelu(self.first(self.norm(x))))  # type: ignore[no-any-return]

    layer = Counting().to(device)
    traced = Traced()
    layer.compile(backend=traced)
    with torch.autocast(device, torch.bfloat16):
        for _ in range(3):
            layer(torch.randn(5, 8, device=device))
    assert traced.found == 1
    assert layer.norm.num_batches_tracked == 3


def scaled(**options: Any) -> Callable[..., Tensor]:
    return lambda q, k, v, mask: F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask if options.get("masked") else None,
        **{name: value for name, value in options.items() if name != "masked"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "options"),
    [(1, {}), (1, {"scale": 0.3}), (0, {"is_causal": True}), (0, {"masked": True}), (0, {"dropout_p": 1e-9})],
    ids=str,
)
def test_only_plain_attention_is_replaced(expected: int, options: dict[str, Any], device: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, count, 16, device=device).bfloat16() for count in (5, 9, 9))
    mask = torch.rand(5, 9, device=device) < 0.8
    mask[:, 0] = True
    assert found(scaled(**options), q, k, v, mask) == expected
    assert found(scaled(**options), q.float(), k.float(), v.float(), mask) == 0


def test_attention_without_gradients_stays(device: str) -> None:
    q, k, v = (torch.randn(2, 3, count, 16, device=device).bfloat16() for count in (5, 9, 9))
    with torch.no_grad():
        assert found(scaled(), q, k, v, q) == 0
    assert found(scaled(), q, k, v, q) == 1


@pytest.mark.parametrize("shape", [(1, 1, 300, 16), (1, 1, 8, 80), (3, 8, 16)], ids=str)
def test_attention_of_other_shapes_stays(shape: tuple[int, ...], device: str) -> None:
    q, k, v = (torch.randn(shape, device=device).bfloat16() for _ in range(3))
    assert found(scaled(), q, k, v, q) == 0


def test_batches_and_contexts_may_differ_in_size(device: str) -> None:
    traced = Traced()

    def layer(x: Tensor, w: Tensor, b: Tensor, key: Tensor) -> Tensor:
        hidden = F.linear(F.gelu(F.linear(x, w, b)), w, b)
        return F.scaled_dot_product_attention(hidden[:, None], key, key)

    compiled = torch.compile(layer, backend=traced)
    for batch, keys in ((2, 9), (3, 10), (4, 11), (5, 12)):
        x, w, b = (torch.randn(*shape, device=device).bfloat16() for shape in ((batch, 5, 8), (8, 8), (8,)))
        key = torch.randn(batch, 1, keys, 8, device=device).bfloat16()
        expected = layer(x, w, b, key)
        assert (compiled(x, w, b, key) - expected).norm() <= 0.02 * expected.norm()
    assert traced.found == 4  # once for the first sizes, once for all others


@pytest.mark.parametrize("heads", [(2, 1), (1, 2)], ids=str)
def test_what_torch_spreads_over_heads_and_samples_stays(heads: tuple[int, int], device: str) -> None:
    q, k, v = (torch.randn(2, count, 4, 16, device=device).bfloat16() for count in (heads[0], *heads[1:] * 2))
    assert found(scaled(), q, k, v, q) == 0
    one = [x[:, :1] for x in (q, k, v)]
    assert found(scaled(), one[0][:1], *one[1:], q) == 0
    assert found(scaled(), *one, q) == 1


def test_values_of_another_width_stay(device: str) -> None:
    q, k, v = (torch.randn(1, 2, 4, width, device=device).bfloat16() for width in (16, 16, 8))
    assert found(scaled(), q, k, v, q) == 0


def test_heads_that_share_keys_stay(device: str) -> None:
    q, k, v = (torch.randn(1, heads, 4, 16, device=device).bfloat16() for heads in (4, 2, 2))
    assert found(scaled(enable_gqa=True), q, k, v, q) == 0


def test_layers_that_are_computed_again_keep_what_attention_gives(device: str) -> None:
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    model = ViTModel(config, add_pooling_layer=False).to(device).train()
    recompute(model)
    layer = next(child for child in model.modules() if isinstance(child, nn.ModuleList))[0]
    tokens = torch.randn(2, TOKENS, WIDTH, device=device).requires_grad_()

    def gradient() -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            out = layer(tokens)
        return torch.autograd.grad(out.square().sum(), tokens)[0]

    expected = gradient()
    traced = Traced("aot_eager_decomp_partition")
    layer.compile(backend=traced)
    torch.testing.assert_close(gradient(), expected, rtol=2e-2, atol=2e-2)
    assert traced.found == 2
    with profile(activities=[ProfilerActivity.CPU]) as calls:
        gradient()
    counts = Counter(event.name for event in calls.events())
    assert counts["policysmith::attention_forward"] == counts["policysmith::attention_backward"] == 1
    assert counts["policysmith::gelu_forward"] == 2
    assert counts["policysmith::gelu_backward"] == 1


def test_layers_of_a_policy_are_compiled_with_them(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def counted(graph: fx.GraphModule) -> None:
        counts.append(rewrite(graph))

    rewrite = passes.rewrite
    monkeypatch.setattr(passes, "rewrite", counted)
    monkeypatch.setattr(compat, "compile_with_inductor", lookup_backend("aot_eager"))
    model = nn.Sequential(*(vit_layer() for _ in range(2))).to(device)
    tokens = torch.randn(2, TOKENS, WIDTH, device=device).requires_grad_()
    with ExitStack() as undo, torch.autocast(device, torch.bfloat16):
        expected = model(tokens)
        assert len(compile_layers(model, undo, trained=True)) == 2
        assert (model(tokens) - expected).norm() <= 0.02 * expected.norm()
    assert counts == [2]  # one layer serves both
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(model(tokens), expected)


def test_what_vmap_computes_stays(device: str) -> None:
    x, w, b = (torch.randn(*shape, device=device).bfloat16() for shape in ((3, 5, 8), (8, 8), (8,)))

    def each(x: Tensor) -> Tensor:
        hidden = F.linear(F.gelu(F.linear(x, w, b)), w)
        return F.scaled_dot_product_attention(*(hidden[None, None] for _ in range(3)))

    traced = Traced("eager")
    torch._dynamo.reset()
    out = torch.compile(torch.vmap(each), backend=traced)(x)
    expected = torch.stack([each(one) for one in x])
    assert (out - expected).norm() <= 0.02 * expected.norm()
    assert traced.found == 0
