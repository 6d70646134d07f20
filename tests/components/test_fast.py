"""FAST: frequencies against scipy, tokens there and back, and the two writers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dct as scipy_dct
from torch import Tensor

from policysmith.components.heads.fast import Fast, _fill_padding
from policysmith.components.language.fast_tokens import FastTokens, dct, inverse_dct
from policysmith.components.layers.blocks.token_writer import TokenWriter
from policysmith.components.layers.rotary import apply_rotary, rotary_table
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Spec


def smooth(count: int, steps: int = 16, width: int = 3, seed: int = 0) -> Tensor:
    """Smooth chunks (N, H, A) within [-1, 1]."""
    random = torch.Generator().manual_seed(seed)
    phase, rate = torch.rand(2, count, 1, width, generator=random)
    time = torch.linspace(0, 1, steps)[None, :, None]
    return torch.sin(6.0 * phase + 3.0 * rate * time)


@pytest.mark.parametrize("steps", [1, 2, 7, 16])
def test_frequencies_are_those_of_scipy(steps: int) -> None:
    chunks = torch.randn(3, steps, 2)
    expected = scipy_dct(chunks.double().numpy(), type=2, axis=1, norm="ortho")
    np.testing.assert_allclose(dct(chunks).numpy(), expected, atol=1e-5)
    torch.testing.assert_close(inverse_dct(dct(chunks)), chunks, atol=1e-5, rtol=1e-5)


@settings(max_examples=40)
@given(st.integers(0, 1000), st.sampled_from([5.0, 10.0, 50.0]))
def test_what_is_encoded_comes_back_but_for_rounding(seed: int, scale: float) -> None:
    """Orthonormal: an error of at most 1 / 2 scale in each frequency is an error of the same norm in the chunk."""
    tokens = FastTokens(FastTokens.fit(smooth(200), 512, scale))
    chunks = smooth(4, seed=seed)
    back = tokens.decode(tokens.encode(chunks))
    limit = 0.5 / scale * (16 * 3) ** 0.5
    clipped = (dct(chunks) * scale).round() != (dct(back) * scale).round()
    if not clipped.any():
        assert (back - chunks).flatten(1).norm(dim=1).max() <= limit + 1e-4


def test_smooth_chunks_take_few_tokens() -> None:
    chunks = smooth(500)
    tokens = FastTokens(FastTokens.fit(chunks, 1024, 10.0))
    lengths = [len(ids) for ids in tokens.encode(chunks)]
    assert sum(lengths) / len(lengths) < 16 * 3 / 3
    assert tokens.size <= 1024


def test_low_frequencies_come_first() -> None:
    """A constant chunk has its whole content in the first A numbers."""
    chunks = torch.cat([smooth(200), torch.full((1, 16, 3), 0.5)])
    facts = FastTokens.fit(chunks, 128, 10.0)
    tokens = FastTokens({**facts})
    letters = "".join(tokens._tokenizer.id_to_token(token) or "" for token in tokens.encode(chunks[-1:])[0])
    numbers = [ord(letter) - 0x4E00 + facts["low"] for letter in letters]
    assert numbers[:3] == [20, 20, 20]  # 0.5 * sqrt(16) * 10
    assert set(numbers[3:]) == {0}


def test_damaged_token_sequences_decode_to_chunks() -> None:
    tokens = FastTokens(FastTokens.fit(smooth(100), 256, 10.0))
    found = tokens.decode([[], [0], list(range(tokens.size)), [tokens.size + 5]])
    assert found.shape == (4, 16, 3)
    assert found.isfinite().all()
    assert (found[0] == 0.0).all()


def test_padding_repeats_the_last_action_that_counts() -> None:
    actions = torch.arange(24.0).reshape(2, 4, 3)
    is_pad = torch.zeros(2, 4, 3, dtype=torch.bool)
    is_pad[0, 2:], is_pad[1, :, 2] = True, True
    held = _fill_padding(torch.where(is_pad, torch.nan, actions), is_pad)
    assert held[0].tolist() == [[0, 1, 2], [3, 4, 5], [3, 4, 5], [3, 4, 5]]
    begins_later = torch.tensor([True, True, False, True])[None, :, None].expand(1, 4, 3)
    assert _fill_padding(actions[:1], begins_later)[0].tolist() == [[6, 7, 8]] * 4
    assert held[1].tolist() == [[12, 13, 0], [15, 16, 0], [18, 19, 0], [21, 22, 0]]


def test_tokens_are_the_same_under_autocast() -> None:
    tokens = FastTokens(FastTokens.fit(smooth(200), 512, 50.0))
    plain = tokens.encode(smooth(50, seed=3))
    with torch.autocast("cpu", torch.bfloat16):
        assert tokens.encode(smooth(50, seed=3)) == plain


def test_chunks_that_do_not_fit_are_refused(world: Any) -> None:
    config, batch = Fast.Config(type="fast", vocabulary=512, max_tokens=2), world.batch(64)
    with pytest.raises(SpecError, match="longest chunk of the data takes") as caught:
        Fast.fit(config, world.feature_specs, {}, lambda: (batch["action"], world.is_pad(batch)))
    assert caught.value.field == "max_tokens"


def make(world: Any, **options: Any) -> Fast:
    config = Fast.Config(type="fast", width=16, depth=1, heads=2, max_tokens=12, vocabulary=512, **options)
    inputs = world.feature_specs
    batch = world.batch(64)
    facts = Fast.fit(config, inputs, {}, lambda: (batch["action"], world.is_pad(batch)))
    return Fast(config, inputs, facts)


def test_loss_is_the_cross_entropy_of_the_tokens_one_by_one(world: Any) -> None:
    part, batch, features = make(world), world.batch(), world.features()
    is_pad = world.is_pad(batch)
    total, count = 0.0, 0
    begin, end = part._vocabulary - 2, part._vocabulary - 1
    for row, tokens in enumerate(part.tokens.encode(_fill_padding(batch["action"], is_pad))):
        one = {
            key: replace(f, values=f.values[[row]], mask=None if f.mask is None else f.mask[[row]])
            for key, f in features.items()
        }
        past = part.writer.read(one)
        for last, following in zip([begin, *tokens], [*tokens, end], strict=True):
            hidden, past = part.writer.extend(past, part.writer.embed(torch.tensor([[last]])))
            scores = part.writer.logits(hidden)[0, -1].double()
            total += (scores.logsumexp(0) - scores[following]).item()
            count += 1
    assert part.loss(features, batch["action"], is_pad)["loss"].item() == pytest.approx(
        total / count, rel=1e-4
    )


def test_a_language_model_writes_with_its_last_ids(world: Any) -> None:
    """Build a writer with a larger vocabulary, of which the head takes the last ids before `skip`, backwards."""
    batch, features = world.batch(), world.features()
    model = TokenWriter({"vision.tokens": world.feature_specs["vision.tokens"]}, 16, 2, 2, 700)
    read = model.read(features)
    spec = Spec(Kind.KEY_VALUES, ("B", 2, 2, 2, 6, 8), vocab=700)
    inputs = {"vlm.decoder": spec, "action": world.feature_specs["action"]}
    config = Fast.Config(type="fast", writer="language_model", vocabulary=512, skip=100, max_tokens=12)
    facts = Fast.fit(config, inputs, {}, lambda: (world.batch(64)["action"], world.is_pad(world.batch(64))))
    assert Fast.specs(config, inputs, facts) == {"action": inputs["action"]}
    part = Fast(config, inputs, facts)
    assert list(part.parameters()) == []
    loss = part.loss({"vlm.decoder": read}, batch["action"], world.is_pad(batch))["loss"]
    loss.backward()
    used = model.embedding.weight.grad.abs().sum(1).nonzero().flatten()  # type: ignore[union-attr]
    assert used.max() <= 700 - 1 - 100
    assert used.min() >= 700 - 1 - 100 - part._vocabulary
    assert all(p.grad is not None for p in model.parameters())
    assert part.sample({"vlm.decoder": read}).shape == (3, 4, 3)


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ({"vlm.key_values": Spec(Kind.KEY_VALUES, ("B", 2, 2, 2, 6, 8))}, "writes no tokens"),
        ({"vlm.decoder": Spec(Kind.KEY_VALUES, ("B", 2, 2, 2, 6, 8), vocab=600)}, "has 600 tokens"),
    ],
)
def test_a_model_that_cannot_write_is_refused(world: Any, inputs: Any, problem: str) -> None:
    config = Fast.Config(type="fast", writer="language_model")
    with pytest.raises(SpecError, match=problem) as caught:
        Fast.specs(config, {**inputs, "action": world.feature_specs["action"]}, {})
    assert caught.value.field == "writer"


def test_actions_that_were_not_normalized_are_refused(world: Any) -> None:
    config, wild = Fast.Config(type="fast"), 1000.0 * world.batch(64)["action"]
    with pytest.raises(SpecError, match="more than a vocabulary of 1024") as caught:
        Fast.fit(config, world.feature_specs, {}, lambda: (wild, torch.zeros_like(wild).bool()))
    assert "normalize" in caught.value.help


def test_rotation_keeps_scores_a_matter_of_distance() -> None:
    def rotate(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return apply_rotary(values, rotary_table(positions, 8))

    query, key = torch.randn(2, 1, 1, 1, 8)
    at = torch.tensor([[3]])
    scores = [(rotate(query, at + s) * rotate(key, at + s + 2)).sum() for s in (0, 5, 100)]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores[0], scores[2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rotate(query, at).norm(), query.norm())


def test_the_vocabulary_survives_a_save(world: Any, tmp_path: Path) -> None:
    part = make(world)
    again = FastTokens(dict(part._facts))
    assert again.encode(smooth(2, 4)) == part.tokens.encode(smooth(2, 4))
