"""Queries, keys and values of the same tokens become one tensor, and only those that can."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policysmith.components.kernels import attention

from .traced_layers import LAYERS, TOKENS, WIDTH, Traced

HEADS, EACH = 2, 8
INNER = HEADS * EACH


@pytest.mark.parametrize(
    ("kind", "products", "detached"), [("transformers", 4, 1), ("timm", 4, 1), ("groot", 6, 1)]
)
def test_layers_compute_queries_keys_and_values_at_once(
    kind: str, products: int, detached: int, device: str
) -> None:
    layer = LAYERS[kind]().to(device)
    traced = Traced()
    layer.compile(backend=traced)
    with torch.autocast(device, torch.bfloat16):
        layer(torch.randn(2, TOKENS, WIDTH, device=device).requires_grad_())
    assert traced.code.count("linear(") == products
    assert traced.code.count(".detach()") == detached
    assert ".unbind(" not in traced.code


class SelfAttention(nn.Module):
    """As transformers writes it; what is done to queries, keys and values on the way is given."""

    def __init__(self, biases: tuple[bool, bool, bool] = (True, True, True), heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(WIDTH, INNER, bias=bias) for bias in biases)

    def split(self, tokens: Tensor) -> Tensor:
        return tokens.view(*tokens.shape[:2], self.heads, -1).transpose(1, 2)

    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            self.split(self.query(tokens)),
            self.split(self.key(tokens)),
            self.split(self.value(tokens)),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(*self.parts(tokens))
        return mixed.transpose(1, 2).flatten(2)


class InOtherOrder(SelfAttention):
    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, query, key = self.value(tokens), self.query(tokens), self.key(tokens)
        return self.split(query), self.split(key), self.split(value)


class Unflattened(SelfAttention):
    def split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class ByName(SelfAttention):
    def split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(dim=-1, sizes=(self.heads, -1)).transpose(1, 2)


class OneBiasForAll(SelfAttention):
    def __init__(self) -> None:
        super().__init__()
        for layer in (self.query, self.key, self.value):
            layer.bias = nn.Parameter(torch.randn(1))


class AnotherDtype(SelfAttention):
    def __init__(self) -> None:
        super().__init__()
        self.key.bfloat16()


class AtOnce(SelfAttention):
    """As timm writes it."""

    def __init__(self, order: tuple[int, ...] = (2, 0, 3, 1, 4), count: int = 3, along: int = 0) -> None:
        super().__init__()
        self.order, self.count, self.along = order, count, along
        self.all = nn.Linear(WIDTH, count * INNER)

    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sizes = (self.count, HEADS) if self.order[0] == 2 else (HEADS, self.count)
        parts = (
            self.all(tokens).reshape(*tokens.shape[:2], *sizes, EACH).permute(*self.order).unbind(self.along)
        )
        return parts[0], parts[1], parts[2]


class KeysFirst(AtOnce):
    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key, query, value = super().parts(tokens)
        return query, key, value


class TurnedAtRest(AtOnce):
    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        packed = self.all(tokens).reshape(*tokens.shape[:2], 3, HEADS, EACH)
        with torch.no_grad():
            turned = packed.permute(2, 0, 3, 1, 4)
        query, key, value = turned.unbind(0)
        return query, key, value


class Scaled(SelfAttention):
    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().parts(tokens)
        return query * 0.5, key, value


class Changed(SelfAttention):
    """The weights of the values are others by the time that they are read."""

    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight = self.value.weight.clone()
        query, key = (self.split(layer(tokens)) for layer in (self.query, self.key))
        weight.mul_(2.0)
        return query, key, self.split(F.linear(tokens, weight, self.value.bias))


class ReadTwice(SelfAttention):
    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.parts(tokens)
        mixed = F.scaled_dot_product_attention(query, key, value) + value
        return mixed.transpose(1, 2).flatten(2)


class OfOthers(SelfAttention):
    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        others = tokens.flip(1)
        query, key, value = self.query(tokens), self.key(others), self.value(tokens)
        return self.split(query), self.split(key), self.split(value)


class QueriesAtRest(SelfAttention):
    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            query = self.query(tokens)
        return self.split(query), self.split(self.key(tokens)), self.split(self.value(tokens))


class TokensSplit(SelfAttention):
    def split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(1, (1, TOKENS)).transpose(1, 2)


class FeaturesFirst(SelfAttention):
    def split(self, tokens: Tensor) -> Tensor:
        return tokens.view(*tokens.shape[:2], EACH, self.heads).transpose(1, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*self.parts(tokens)).transpose(1, 3).flatten(2)


class InOneRow(SelfAttention):
    """Tokens of all samples in one row, as a layer may take them."""

    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        row = tokens.flatten(0, 1)
        query, key, value = (
            layer(row).view(len(tokens), TOKENS, HEADS, EACH).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        return query, key, value


class Shared(SelfAttention):
    """Keys are values."""

    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key = self.split(self.query(tokens)), self.split(self.key(tokens))
        return query, key, key


JOINED: dict[str, tuple[bool, Callable[[], nn.Module]]] = {
    "three products": (True, SelfAttention),
    "no biases": (True, lambda: SelfAttention((False, False, False))),
    "in another order": (True, InOtherOrder),
    "unflattened": (True, Unflattened),
    "unflattened by name": (True, ByName),
    "at once": (True, AtOnce),
    "turned at rest": (False, TurnedAtRest),
    "one bias for all": (False, OneBiasForAll),
    "another dtype": (False, AnotherDtype),
    "of keys no bias": (False, lambda: SelfAttention((True, False, True))),
    "scaled": (False, Scaled),
    "changed in between": (False, Changed),
    "read twice": (False, ReadTwice),
    "of other tokens": (False, OfOthers),
    "queries at rest": (False, QueriesAtRest),
    "keys are values": (False, Shared),
    "heads before thirds": (False, lambda: AtOnce((3, 0, 2, 1, 4))),
    "keys first": (False, KeysFirst),
    "tokens for heads": (False, lambda: AtOnce((2, 0, 1, 3, 4))),
    "samples for thirds": (False, lambda: AtOnce(along=1)),
    "tokens split": (False, TokensSplit),
    "features first": (False, FeaturesFirst),
    "in one row": (False, InOneRow),
    "four at once": (False, lambda: AtOnce(count=4)),
}


@pytest.mark.parametrize("kind", JOINED)
def test_only_what_is_one_product_becomes_one(kind: str, device: str) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    joined, make = JOINED[kind]
    layer = make().to(device)
    tokens = torch.randn(3, TOKENS, WIDTH, device=device).requires_grad_()
    against = torch.randn(3, TOKENS, INNER, device=device)
    leaves = [tokens, *layer.parameters()]

    def results() -> list[Tensor | None]:
        with torch.autocast(device, torch.bfloat16):
            out = layer(tokens)
        return [
            out.detach(),
            *torch.autograd.grad((out.reshape(against.shape) * against).sum(), leaves, allow_unused=True),
        ]

    expected = results()
    traced = Traced()
    layer.compile(backend=traced)
    found = results()
    assert traced.found == 1
    assert (traced.code.count("linear(") == 1) == (joined or isinstance(layer, AtOnce))
    assert (", None, None, None, " in traced.code) == joined
    largest = max((float(x.norm()) for x in expected[1:] if x is not None), default=0.0)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:  # that of a bias of keys is zero up to rounding
            assert (ours - theirs).norm() <= 0.02 * max(float(theirs.norm()), 0.1 * largest)


class Conditioned(nn.Module):
    """Keys and values are one projection of a context, which a part leaves as one tensor."""

    def __init__(self, option: str) -> None:
        super().__init__()
        self.option = option
        self.query, self.both = nn.Linear(WIDTH, INNER), nn.Linear(WIDTH, 2 * INNER)
        if option == "one_for_all":
            self.both.bias = nn.Parameter(torch.randn(1))

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query(tokens).unflatten(-1, (HEADS, -1))
        weight, bias = self.both.weight, self.both.bias
        if self.option == "apart":
            key = F.linear(tokens, weight[:INNER], bias[:INNER]).unflatten(-1, (HEADS, -1))
            return attention.attention(query, key, query * 2.0).flatten(2)
        if (
            self.option == "token_of_its_own"
        ):  # what is split are tokens, of each of which the features are a head
            both = F.linear(tokens.unsqueeze(2).expand(-1, -1, 4, -1), weight[:EACH], bias[:EACH])
            return attention.attention(query, both.unflatten(2, (2, HEADS))).flatten(2)
        known = self.option == "known"
        parts = bias.unflatten(0, (2, HEADS, -1)) if known else None
        with torch.set_grad_enabled(self.option != "at_rest"):
            projected = F.linear(tokens, weight, bias.detach() if known else bias)
        sizes = (2, HEADS, EACH)
        both = (
            projected.unflatten(dim=-1, sizes=sizes)
            if self.option == "by_name"
            else projected.unflatten(-1, sizes)
        )
        mixed = attention.attention(query, both, bias=parts)
        if self.option == "read_whole":
            mixed = mixed + both[:, :, 1]
        if self.option == "read_by_two":
            mixed = mixed + attention.attention(query * 2.0, both)
        return mixed.flatten(2) + (projected[..., :INNER] if self.option == "read_twice" else 0.0)


@pytest.mark.parametrize(
    ("given", "option"),
    [
        (True, ""),
        (True, "by_name"),
        (True, "known"),
        (False, "at_rest"),
        (False, "read_twice"),
        (False, "read_whole"),
        (False, "read_by_two"),
        (False, "apart"),
        (False, "one_for_all"),
        (False, "token_of_its_own"),
    ],
)
def test_a_bias_has_its_gradient_from_attention(given: bool, option: str, device: str) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer = Conditioned(option).to(device)
    tokens = torch.randn(3, TOKENS, WIDTH, device=device)

    def gradient() -> tuple[Tensor | None, float]:
        """And the size of others."""
        with torch.autocast(device, torch.bfloat16):
            out = layer(tokens)
        leaves = [layer.both.bias, layer.both.weight]
        found, other = torch.autograd.grad(out.sin().sum(), leaves, allow_unused=True)
        return found, 0.0 if other is None else float(other.abs().max())

    layer.option = option.replace("known", "")
    expected, size = gradient()
    layer.option = option
    traced = Traced()
    layer.compile(backend=traced)
    found, _ = gradient()
    assert (".detach()" in traced.code) == given
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2 * size)
    if given and found is not None:
        assert not found[:INNER].any()


def test_batches_of_other_sizes_become_one_product_too(device: str) -> None:
    torch._dynamo.reset()
    layer = SelfAttention().to(device)
    sizes = (2, 3, 4)
    batches = [torch.randn(size, TOKENS, WIDTH, device=device) for size in sizes]

    def results() -> list[Tensor]:
        with torch.autocast(device, torch.bfloat16):
            return [layer(batch) for batch in batches]

    expected = results()
    traced = Traced()
    layer.compile(backend=traced)
    for ours, theirs in zip(results(), expected, strict=True):
        assert (ours - theirs).norm() <= 0.02 * theirs.norm()
    assert traced.code.count("linear(") == traced.found == 2  # once for the first size, once for all others


def test_quantised_weights_stay_as_they_are(device: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = SelfAttention().to(device).bfloat16()
    quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
    layer.requires_grad_(False)
    tokens = torch.randn(3, TOKENS, WIDTH, device=device).bfloat16().requires_grad_()
    expected = layer(tokens)
    traced = Traced()
    layer.compile(backend=traced)
    assert (layer(tokens) - expected).norm() <= 0.02 * expected.norm()
    assert (traced.found, traced.code.count("linear(")) == (1, 3)
