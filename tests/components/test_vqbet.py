"""Residual codes against brute force, and the two phases of VQ-BeT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policysmith.components.base import Feature
from policysmith.components.heads.vqbet import Vqbet
from policysmith.components.layers.blocks.gpt import Gpt
from policysmith.components.layers.residual_vq import ResidualVq
from policysmith.components.randomness.generator import categorical
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Spec

HORIZON, ACTION = 4, 2
INPUTS = {"state.pooled": Spec(Kind.POOLED, ("B", 6)), "action": Spec(Kind.ACTION, ("B", HORIZON, ACTION))}
TINY: dict[str, Any] = {
    "vae_steps": 3,
    "codes": 4,
    "code_width": 3,
    "vae_hidden": 8,
    "width": 8,
    "depth": 1,
    "heads": 2,
    "dropout": 0.0,
}
YES = torch.tensor(True)


def head(**options: Any) -> Vqbet:
    return Vqbet(Vqbet.Config(type="vqbet", **{**TINY, **options}), INPUTS, {})


def batch(size: int = 5, seed: int = 0) -> tuple[dict[str, Feature], Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    actions = torch.randn(size, HORIZON, ACTION, generator=random)
    features = {"state.pooled": Feature(torch.randn(size, 6, generator=random))}
    return features, actions, torch.zeros_like(actions, dtype=torch.bool)


def quantizer(books: int = 3, codes: int = 5, width: int = 4) -> ResidualVq:
    part = ResidualVq(books, codes, width)
    part.codes.normal_()
    return part


def brute_force(
    vector: list[float], books: list[list[list[float]]]
) -> tuple[list[int], list[float], list[float]]:
    """Return indices, quantized vector and mean squared errors of one vector, in Python's float64."""
    residual, indices, errors = list(vector), [], []
    for book in books:
        distances = [sum((a - b) ** 2 for a, b in zip(residual, code, strict=True)) for code in book]
        index = min(range(len(book)), key=distances.__getitem__)
        indices.append(index)
        errors.append(distances[index] / len(vector))
        residual = [a - b for a, b in zip(residual, book[index], strict=True)]
    return indices, [a - b for a, b in zip(vector, residual, strict=True)], errors


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
def test_codes_are_the_nearest_one_after_the_other(books: int, codes: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    part = quantizer(books, codes, width)
    vectors = torch.randn(7, width)
    indices, quantized, errors = part(vectors)
    for row in range(7):
        expected = brute_force(vectors[row].double().tolist(), part.codes.double().tolist())
        assert indices[row].tolist() == expected[0]
        assert quantized[row].tolist() == pytest.approx(expected[1], abs=1e-5)
        assert errors[row].tolist() == pytest.approx(expected[2], abs=1e-5)
    torch.testing.assert_close(part.look_up(indices), quantized, atol=1e-5, rtol=1e-5)


def test_codes_are_moving_averages_of_valid_vectors() -> None:
    part = quantizer()
    vectors, valid = torch.randn(6, 4), torch.tensor([True, True, True, True, False, False])
    indices = part(vectors)[0]
    before = {name: value.double().clone() for name, value in part.named_buffers()}
    part.update(vectors, indices, valid, YES)
    for book in range(3):
        left = vectors.double() - sum(before["codes"][other][indices[:, other]] for other in range(book))
        for code in range(5):
            hit = [row for row in range(4) if indices[row, book] == code]
            count = 0.8 * before["counts"][book, code] + 0.2 * len(hit)
            total = sum((left[row] for row in hit), torch.zeros(4).double())
            sums = 0.8 * before["sums"][book, code] + 0.2 * total
            torch.testing.assert_close(part.counts[book, code].double(), count)
            torch.testing.assert_close(part.sums[book, code].double(), sums, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(part.codes[book, code].double(), sums / count, atol=1e-4, rtol=1e-3)
    after = {name: value.clone() for name, value in part.named_buffers()}
    part.update(vectors, indices, valid, ~YES)
    part.start(vectors, valid, ~YES)
    assert all(torch.equal(value, after[name]) for name, value in part.named_buffers())


def test_codes_start_as_valid_vectors() -> None:
    part = quantizer(books=2, codes=3)
    vectors, valid = torch.randn(6, 4), torch.arange(6) < 4
    part.start(vectors, valid, YES)
    held = [any(torch.equal(code, vector) for vector in vectors[:4]) for code in part.codes[0]]
    assert held == [True] * 3
    assert len(part.codes[0].unique(dim=0)) == 3
    part.start(vectors, torch.arange(6) < 1, YES)  # fewer vectors than codes
    assert torch.equal(part.codes[0], vectors[:1].expand(3, -1))


def test_a_phase_leaves_what_it_does_not_train() -> None:
    part = head()
    optimizer = torch.optim.AdamW(part.parameters(), lr=1e-2, weight_decay=0.1)
    rests: dict[str, Tensor] = {}
    for step in range(8):
        features, actions, is_pad = batch(seed=step)
        losses = part.loss(features, actions, is_pad)
        optimizer.zero_grad()
        losses["loss"].backward()
        learning = step < 3
        for name, parameter in part.named_parameters():
            assert bool(parameter.grad.any()) <= (name.startswith("vae.") == learning), (step, name)
        expected = losses["reconstruction"] + 5.0 * losses["commitment"]
        if not learning:
            expected = losses["code"] + 10_000.0 * losses["offset"]
        torch.testing.assert_close(losses["loss"], expected)
        optimizer.step()
        settled = {name: value.clone() for name, value in part.settled.named_buffers()}
        if step == 3:
            rests = settled
        elif step > 3:
            assert all(torch.equal(value, rests[name]) for name, value in settled.items())
        if step == 2:
            own = {name: p.clone() for name, p in part.vae.named_parameters()}
    assert all(torch.equal(rests[f"module.{name}"], value) for name, value in own.items())
    assert any(
        not torch.equal(p, own[name]) for name, p in part.vae.named_parameters()
    )  # pulled by the optimizer
    assert part.trained == 8


def test_a_resumed_head_goes_on_where_it_was() -> None:
    first, second = head(), head()
    for step in range(5):
        torch.manual_seed(step)
        expected = first.loss(*batch(seed=step))["loss"]
        if step == 2:
            second.load_state_dict(first.state_dict())
        elif step > 2:
            torch.manual_seed(step)
            assert torch.equal(second.loss(*batch(seed=step))["loss"], expected)


def test_evaluation_and_batches_of_padding_do_not_count() -> None:
    part = head()
    features, actions, is_pad = batch()
    part.loss(features, actions, is_pad | True)
    before = {name: value.clone() for name, value in part.named_buffers()}
    assert part.trained == 0
    part.eval().loss(features, actions, is_pad)
    assert all(torch.equal(value, before[name]) for name, value in part.named_buffers())
    part.train().loss(features, actions, is_pad)
    assert part.trained == 1


def test_windows_are_put_together_to_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    part = head(windows=3)
    features, actions, _ = batch()
    windows = part._windows(actions)
    assert torch.equal(windows.unflatten(0, (5, 3))[:, 1], actions[:, 1:3].flatten(1))
    monkeypatch.setattr(part, "_predict", lambda hidden, indices: windows)
    assert torch.equal(part.sample(features), actions)


def test_tokens_see_what_precedes_them() -> None:
    gpt = Gpt(5, 8, 2, 2, 0.0)
    for parameter in gpt.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    tokens = torch.randn(2, 5, 8)
    plain = gpt(tokens)
    for place in range(5):
        changed = tokens.clone()
        changed[:, place] += 1.0
        differs = (gpt(changed) - plain).abs().amax((0, 2)) > 1e-4
        assert differs.tolist() == [other >= place for other in range(5)]
    mask = torch.tensor([True, False, True, True, True])[None]
    masked = gpt(tokens, mask.expand(2, -1))
    changed = tokens.clone()
    changed[:, 1] += 1.0
    assert torch.equal(gpt(changed, mask.expand(2, -1))[:, 2:], masked[:, 2:])


def test_indices_are_drawn_by_their_scores() -> None:
    scores = torch.tensor([0.1, 0.6, 0.3]).log().expand(30_000, -1)
    drawn = categorical(scores, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.6, 0.3]), atol=0.01, rtol=0.0)


@pytest.mark.parametrize(
    ("options", "inputs", "field", "message"),
    [
        ({"width": 9}, {}, "width", "cannot be shared by 2 heads"),
        ({"windows": 5}, {}, "windows", "5 windows do not fit into a chunk of 4"),
        ({"observation_steps": 4}, {}, "observation_steps", "does not divide into 4 steps"),
        ({}, {"text.tokens": Spec(Kind.TOKENS, ("B", "L", 6))}, None, "a varying number of tokens"),
    ],
)
def test_what_does_not_fit(options: Any, inputs: Any, field: str | None, message: str) -> None:
    config = Vqbet.Config(type="vqbet", **{**TINY, **options})
    with pytest.raises(SpecError, match=message) as caught:
        Vqbet.specs(config, {**INPUTS, **inputs}, {})
    assert caught.value.field == field
    assert caught.value.help


def second_phase(world: Any, **options: Any) -> tuple[Vqbet, dict[str, Feature]]:
    """Return a head that predicts codes, and features with hidden tokens."""
    inputs = {key: world.feature_specs[key] for key in ("vision.tokens", "state.pooled", "action")}
    part = Vqbet(Vqbet.Config(type="vqbet", **TINY, windows=2, **options), inputs, {}).eval()
    part.trained.fill_(TINY["vae_steps"])
    features = world.features()
    return part, {key: features[key] for key in ("vision.tokens", "state.pooled")}


def loss_and_gradients(part: Vqbet, features: Any, actions: Tensor, is_pad: Tensor) -> list[Tensor]:
    torch.manual_seed(3)
    part.zero_grad()
    loss = part.loss(features, actions, is_pad)["loss"]
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in part.parameters() if p.grad is not None)]


def test_padded_actions_have_no_influence_on_the_second_phase(world: Any) -> None:
    part, features = second_phase(world)
    actions, is_pad = world.batch()["action"], world.is_pad(world.batch())
    assert is_pad.any()
    plain = loss_and_gradients(part, features, actions, is_pad)
    for value in (1e4, torch.nan):
        padded = loss_and_gradients(part, features, torch.where(is_pad, value, actions), is_pad)
        assert all(torch.equal(one, other) for one, other in zip(plain, padded, strict=True))
    shown = loss_and_gradients(part, features, actions, torch.zeros_like(is_pad))
    assert not torch.equal(plain[0], shown[0])


def test_hidden_tokens_have_no_influence_on_the_second_phase(world: Any) -> None:
    part, features = second_phase(world)
    actions, is_pad = world.batch()["action"], world.is_pad(world.batch())
    tokens = features["vision.tokens"]
    assert tokens.mask is not None
    hidden = ~tokens.mask[..., None]
    losses = [
        loss_and_gradients(
            part, {**features, "vision.tokens": Feature(values, tokens.mask)}, actions, is_pad
        )[0]
        for values in (
            tokens.values,
            torch.where(hidden, 50.0, tokens.values),
            torch.where(hidden, tokens.values, tokens.values.flip(-1)),
        )
    ]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_a_padded_sample_counts_for_nothing_in_the_second_phase(world: Any) -> None:
    """Neither as an error nor in the mean: the loss of one sample is that of the sample beside nothing but padding."""
    part, features = second_phase(world, temperature=1e-6)  # the likeliest codes, whatever is drawn
    actions = world.batch()["action"]
    is_pad = torch.ones_like(actions, dtype=torch.bool)
    nothing = loss_and_gradients(part, features, actions, is_pad)
    assert all((value == 0.0).all() for value in nothing)
    is_pad[0] = False
    beside = loss_and_gradients(part, features, actions, is_pad)[0]
    one = {
        key: Feature(feature.values[:1], None if feature.mask is None else feature.mask[:1])
        for key, feature in features.items()
    }
    alone = loss_and_gradients(part, one, actions[:1], is_pad[:1])[0]
    torch.testing.assert_close(beside, alone)
