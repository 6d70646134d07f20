"""Contract of action heads, and of networks inside a flow-matching head."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from policysmith.components.heads import vqbet
from policysmith.components.heads.diffusion import Diffusion
from policysmith.components.heads.flow_matching import FlowMatching
from policysmith.components.real_time import Delay, Prefix
from policysmith.components.registry import (
    HEADS,
    NETWORKS,
)
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import FEATURES

from .built import Built, masked_where, of, randomize, rows


@of(HEADS, NETWORKS)
def test_head_reads_each_kind_that_it_accepts_or_says_why_not(built: Built) -> None:
    accepted = [key for key, spec in built.inputs.items() if spec.kind in FEATURES]
    assert accepted
    read = 0
    for key in accepted:
        built.inputs = {name: built.world.every_feature[name] for name in (key, "action")}
        try:
            built.specs()
        except SpecError:
            continue
        read += 1
        assert built.run(built.make())["action"].shape == (3, 4, 3)
    assert read


@of(HEADS, NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_padded_actions_have_no_influence(built: Built, dtype: torch.dtype) -> None:
    untouched = built.make().to(dtype)
    randomize(untouched)
    features, batch = built.features(dtype=dtype), built.world.batch()
    is_pad = built.world.is_pad(batch)
    assert is_pad.any()
    results = []
    for actions in (
        batch["action"],
        torch.where(is_pad, 1e4, batch["action"]),
        torch.where(is_pad, torch.nan, batch["action"]),
        batch["action"] + 1.0,
    ):
        torch.manual_seed(5)
        part = copy.deepcopy(untouched)  # a head may count its steps
        loss = part.loss(features, actions, is_pad)["loss"]
        loss.backward()
        results.append((loss, [p.grad.clone() for p in part.parameters()]))
    for loss, grads in results[1:3]:
        assert torch.equal(loss, results[0][0])
        assert all(torch.equal(a, b) for a, b in zip(grads, results[0][1], strict=True))
    assert not torch.equal(results[3][0], results[0][0])


@of(HEADS, NETWORKS)
def test_a_batch_of_padding_costs_nothing(built: Built) -> None:
    part = built.make()
    randomize(part)
    batch = built.world.batch()
    everything = torch.ones_like(batch["action"], dtype=torch.bool)
    loss = part.loss(built.features(), batch["action"], everything)["loss"]
    loss.backward()
    assert loss == 0.0
    assert all((p.grad == 0.0).all() for p in part.parameters())


@of(HEADS, NETWORKS)
def test_masked_tokens_have_no_influence(built: Built) -> None:
    untouched = built.make()
    randomize(untouched)
    batch, features = built.world.batch(), built.features()
    if all(feature.mask is None for feature in features.values()):
        pytest.skip("nothing that it reads has a mask")
    variants = []
    for change in (
        lambda values: values,
        lambda values: torch.full_like(values, 50.0),
        lambda values: values.flip(-1),
    ):
        torch.manual_seed(5)
        hides = len(variants) < 2
        changed = {key: masked_where(feature, change, hides) for key, feature in features.items()}
        part = copy.deepcopy(untouched)
        loss = part.loss(changed, batch["action"], built.world.is_pad(batch))["loss"]
        variants.append((loss, part.sample(changed, torch.Generator().manual_seed(0))))
    assert torch.equal(variants[0][0], variants[1][0])
    assert torch.equal(variants[0][1], variants[1][1])
    assert not (torch.equal(variants[0][0], variants[2][0]) and torch.equal(variants[0][1], variants[2][1]))


@of(HEADS, NETWORKS)
def test_a_sample_without_a_valid_token_is_finite(built: Built) -> None:
    part = built.make()
    randomize(part)
    batch, features = built.world.batch(), built.features()
    some = (torch.arange(3) > 0)[:, None]
    features = {
        key: feature if feature.mask is None else dataclasses.replace(feature, mask=feature.mask & some)
        for key, feature in features.items()
    }
    loss = part.loss(features, batch["action"], built.world.is_pad(batch))["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in part.parameters() if p.grad is not None)


@of(HEADS, NETWORKS)
def test_samples_are_reproducible_by_generator(built: Built) -> None:
    part, features = built.make(), built.features()
    randomize(part)
    part.eval()
    first = part.sample(features, torch.Generator().manual_seed(1))
    torch.manual_seed(99)
    assert torch.equal(first, part.sample(features, torch.Generator().manual_seed(1)))
    assert part.sample(features).shape == first.shape


THOROUGH = ("flow_matching", "mlp")
"""Heads that learn until their samples are right; the others until their loss is clearly lower."""


@of(HEADS, NETWORKS)
def test_one_batch_is_learned_by_heart(built: Built) -> None:
    part, features, batch = built.make(), built.features(), built.world.batch()
    is_pad = torch.zeros_like(batch["action"], dtype=torch.bool)
    steps = 400 if built.name in THOROUGH else 150
    optimizer = torch.optim.Adam(part.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        loss = part.loss(features, batch["action"], is_pad)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) / 20 < (0.1 if built.name in THOROUGH else 0.6) * sum(losses[:5]) / 5
    if built.name not in THOROUGH:
        return
    with torch.no_grad():
        error = (
            (part.eval().sample(features, torch.Generator().manual_seed(0)) - batch["action"]).abs().mean()
        )
    assert error < 0.2  # about 1 before


@of(HEADS, NETWORKS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_batches_that_are_told_their_shares_lose_what_all_samples_lose_together(
    built: Built, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, terms and gradients, for batches of other sizes and with other numbers of values that count."""
    monkeypatch.setattr(torch, "randn_like", lambda values, **options: torch.full_like(values, 0.3))
    monkeypatch.setattr(vqbet, "categorical", lambda scores, generator=None: scores.argmax(-1))
    for head, drawn in ((FlowMatching, 0.4), (Diffusion, 3)):
        monkeypatch.setattr(
            head,
            "draw",
            lambda self, actions, drawn=drawn: (
                torch.full((len(actions),), drawn),
                torch.full_like(actions, 0.3),
            ),
        )
    whole = built.make().train(training)
    randomize(whole)
    if training and hasattr(whole, "trained"):  # the codes follow batches, as statistics of batch norms do
        whole.trained.fill_(100)
    cut = copy.deepcopy(whole)
    features, batch = built.features(5), built.world.batch(5)
    actions, is_pad = batch["action"], built.world.is_pad(batch)
    is_pad[:2, 1:] = True
    expected = whole.loss(features, actions, is_pad)
    expected["loss"].backward()

    parts = [slice(0, 2), slice(2, 5)]
    counts = [cut.counts(actions[part], is_pad[part]) for part in parts]
    total = cut.counts(actions, is_pad)
    found: dict[str, torch.Tensor] = {}
    for part, count in zip(parts, counts, strict=True):
        shares = {kind: 2 * count[kind] / total[kind] for kind in total}
        shown = {key: rows(feature, part) for key, feature in features.items()}
        terms = cut.loss(shown, actions[part], is_pad[part], shares)
        (terms["loss"] / 2).backward()
        found = {name: found.get(name, torch.zeros(())) + value.detach() / 2 for name, value in terms.items()}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-5, atol=1e-6, msg=name)
    for ours, theirs in zip(cut.parameters(), whole.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            assert (ours.grad - theirs.grad).norm() <= 1e-4 * theirs.grad.norm() + 1e-7


@of(NETWORKS)
def test_a_time_of_each_step_is_taken_or_refused(built: Built) -> None:
    """Equal times of all steps are the time of the chunk, and the time of one step matters."""
    if not built.cls.times_of_steps:
        config = built.whole_config.model_copy(update={"delay": Delay(max=2)})
        with pytest.raises(SpecError, match=f"`{built.name}` takes one time for a whole chunk") as caught:
            built.whole.specs(config, built.inputs, built.facts)
        assert caught.value.field == "delay"
        return
    part, features = built.make().eval(), built.features()
    randomize(part)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            context = part.network.encode(features)
            chunk, times = torch.randn(3, 4, 3), torch.tensor([0.1, 0.5, 0.9])
            whole = part.network(chunk, times, context)
            steps = times[:, None].repeat(1, 4)
            torch.testing.assert_close(part.network(chunk, steps, context), whole)
            steps[:, 0] = 1.0
            assert not torch.allclose(part.network(chunk, steps, context), whole, atol=1e-4)


@of(HEADS)
def test_a_head_continues_chunks_or_says_that_it_cannot(built: Built) -> None:
    part, features = built.make().eval(), built.features()
    randomize(part)
    free = part.sample(features, torch.Generator().manual_seed(1))

    def continued(weight: float) -> torch.Tensor:
        prefix = Prefix(0.9 * torch.ones(3, 4, 3), torch.full((3, 4), weight))
        return part.inpaint(features, prefix, torch.Generator().manual_seed(1))  # type: ignore[no-any-return]

    if part.continuation is None:
        with pytest.raises(SpecError, match="cannot continue"):
            continued(1.0)
        return
    torch.testing.assert_close(continued(0.0), free)
    assert (continued(1.0) - 0.9).abs().mean() < 0.9 * (free - 0.9).abs().mean()
    assert not continued(1.0).requires_grad


@of(NETWORKS)
def test_what_depends_on_time_alone_is_kept(built: Built) -> None:
    """With what a network makes of a time in the context, it does not read the time again."""
    head: Any = built.make().eval()
    randomize(head)
    features = built.features(2)
    with torch.no_grad():
        context = head.network.encode(features)
        chunk, time = torch.randn(2, 4, 3), torch.tensor([0.3, 0.3])
        moment = head.network.at(time)
        expected = head.network(chunk, time, context)
        found = head.network(chunk, torch.full_like(time, torch.nan), {**context, **moment})
    torch.testing.assert_close(found, expected)


@of(NETWORKS)
def test_packed_heads_ask_once_per_time(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    head: Any = built.make().eval()
    randomize(head)
    plain, made = built.run(head)["action"], head.network.at
    asked: list[float] = []

    def at(time: Tensor) -> Any:
        asked.append(float(time))
        return made(time)

    monkeypatch.setattr(head.network, "at", at)
    head.pack()
    for _ in range(2):
        torch.testing.assert_close(built.run(head)["action"], plain)
    assert len(asked) == len(set(asked)) == head.config.steps
