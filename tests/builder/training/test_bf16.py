"""Training in bfloat16: copies of the weights, which change nothing but the casts, and the optimizer that writes them."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import AutoModel

from policysmith.builder import Builder
from policysmith.builder.convolutions import channels_last
from policysmith.builder.training.optim.build import build_optimizer
from policysmith.builder.training.optim.ema import WeightAverage
from policysmith.builder.training.optim.fused_adamw import FusedAdamW
from policysmith.builder.training.optim.groups import parameter_groups
from policysmith.builder.training.speed import bf16_weights as module
from policysmith.builder.training.speed.bf16_weights import BF16Copies, cast_modules
from policysmith.components.kernels.adamw import memory_order
from policysmith.schemas.errors import TrainingError
from policysmith.schemas.recipe import OptimizerSection

SECTION = OptimizerSection(lr=1e-2, weight_decay=0.1)


class Odd(nn.Linear):
    """A layer that uses its weight for more than autocast would cast."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.exp(), self.bias)


class Model(nn.Module):
    """Weights of every kind: with a copy, without, frozen, and shared."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 8)
        self.first, self.norm, self.last = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 5)
        self.again, self.odd, self.frozen = nn.Linear(8, 8), Odd(8, 8), nn.Linear(8, 8)
        self.last.weight = self.embed.weight
        self.again.weight = self.first.weight
        self.frozen.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.again(self.first(self.embed(ids)).relu())
        return self.last(self.frozen(self.norm(x) + self.odd(x)))


def gradients(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids).float().logsumexp(-1).square().mean()
    loss.backward()
    return loss.detach()


def used(model: nn.Module) -> set[nn.Module]:
    with torch.autocast("cpu", torch.bfloat16):
        return cast_modules(model, lambda: model(torch.randint(0, 5, (4, 3))))


def test_copies_stand_where_autocast_would_cast() -> None:
    model = Model()
    names = {parameter: name for name, parameter in model.named_parameters()}
    shadows = BF16Copies(model, used(model), trained=True)
    shadows.install()
    copied = {names[weight] for weight in shadows.copies}
    assert copied == {
        "first.weight",
        "first.bias",
        "last.bias",
        "again.bias",
        "frozen.weight",
        "frozen.bias",
    }
    assert model.first.weight is model.again.weight
    assert model.first.weight.dtype == torch.bfloat16
    assert not model.frozen.weight.requires_grad
    with shadows.removed():
        assert dict(model.named_parameters()) == {n: p for p, n in names.items()}
    assert model.first.weight.dtype == torch.bfloat16
    shadows.remove()
    assert all(p.dtype == torch.float32 for p in model.parameters())


class Particular(nn.Module):
    """Modules whose weights must not be copied: recomputed, also used without autocast, and unused."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.exact, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.normed = nn.utils.weight_norm(nn.Linear(4, 4))
        self.pruned = prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5)
        self.orthogonal = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.exact(self.orthogonal(self.pruned(self.normed(self.plain(input=x)))))
        with torch.autocast("cpu", enabled=False):
            return self.exact(x.float())


def test_particular_modules_keep_their_weights() -> None:
    model, x = Particular(), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        shadows = BF16Copies(model, cast_modules(model, lambda: model(x)), trained=True)
        shadows.install()
        assert torch.equal(model(x), expected)
    shadows.remove()
    copied = {name for name, weight in model.named_parameters() if weight in shadows.copies}
    assert copied == {"plain.weight", "plain.bias", "orthogonal.bias"}


def test_only_frozen_weights_are_copied_where_gradients_add_up() -> None:
    model = Model()
    shadows = BF16Copies(model, used(model), trained=False)
    shadows.install()
    assert len(shadows.copies) == 2
    assert model.first.weight.dtype == torch.float32
    assert model.frozen.weight.dtype == torch.bfloat16


def test_copies_compute_what_autocast_does() -> None:
    plain = Model()
    copied = copy.deepcopy(plain)
    ids = torch.randint(0, 5, (4, 3))
    theirs = gradients(plain, ids)
    shadows = BF16Copies(copied, used(copied), trained=True)
    masters = dict(copied.named_parameters())
    shadows.install()
    assert torch.equal(gradients(copied, ids), theirs)
    for name, weight in plain.named_parameters():
        ours = shadows.copies.get(masters[name], masters[name]).grad
        assert (ours is None) == (weight.grad is None)
        if ours is not None and weight.grad is not None:
            assert torch.equal(ours.float(), weight.grad), name


@pytest.mark.parametrize("limit", [None, 0.05])
def test_the_fused_step_is_torchs(limit: float | None) -> None:
    ours, theirs = Model(), Model()
    theirs.load_state_dict(ours.state_dict())
    averages = [WeightAverage(model, 0.9) for model in (ours, theirs)]
    fused = build_optimizer(ours, SECTION, averages[0], bf16=True)
    assert isinstance(fused, FusedAdamW)
    plain = torch.optim.AdamW(parameter_groups(theirs, SECTION), lr=1e-2, weight_decay=0.1)  # type: ignore[arg-type]
    for step in range(1, 6):
        rate = 1e-2 / step
        fused.set_rate(rate)
        for group in plain.param_groups:
            group["lr"] = rate * group["lr_scale"]
        ids = torch.randint(0, 5, (4, 3))
        for model in (ours, theirs):
            model(ids).square().mean().backward()
        norm = fused.clip(limit)
        torch.testing.assert_close(
            norm, nn.utils.clip_grad_norm_(theirs.parameters(), float("inf") if limit is None else limit)
        )
        fused.step()
        plain.step()
        averages[1].update(step)
        fused.zero_grad()
        plain.zero_grad()
        assert all(p.grad is None for p in ours.parameters())
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    for name, average in averages[0].state_dict().items():
        torch.testing.assert_close(average, averages[1].state_dict()[name], rtol=1e-5, atol=1e-6)


def test_averages_of_weights_without_a_gradient_follow_them() -> None:
    ours, theirs = Model(), Model()
    theirs.load_state_dict(ours.state_dict())
    averages = [WeightAverage(model, 0.9) for model in (ours, theirs)]
    fused, plain = build_optimizer(ours, SECTION, averages[0], bf16=True), build_optimizer(theirs, SECTION)
    for step in range(1, 5):
        for model, optimizer in ((ours, fused), (theirs, plain)):
            optimizer.zero_grad()
            loss = model(torch.arange(5)[None]).square().mean()
            if step > 2:  # the rest has none any more
                loss = model.odd.weight.square().mean()
            loss.backward()
            optimizer.step()
        averages[1].update(step)
    for name, average in averages[0].state_dict().items():
        torch.testing.assert_close(average, averages[1].state_dict()[name], rtol=1e-5, atol=1e-6)


def stepped(model: Model, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    model(torch.randint(0, 5, (4, 3))).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("bf16", [(True, True), (True, False), (False, True)], ids=str)
def test_either_optimiser_goes_on_from_the_state_of_either(bf16: tuple[bool, bool], tmp_path: Path) -> None:
    first, whole = Model(), Model()
    whole.load_state_dict(first.state_dict())
    before, after = build_optimizer(first, SECTION, bf16=bf16[0]), build_optimizer(whole, SECTION)
    for seed in range(3):
        stepped(first, before, seed)
        stepped(whole, after, seed)
    torch.save(before.state_dict(), tmp_path / "state.pt")
    second = Model()
    resumed = build_optimizer(second, SECTION, bf16=bf16[1])
    stepped(second, resumed, 9)  # what it knew before is forgotten
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for seed in range(3, 5):
        stepped(second, resumed, seed)
        stepped(whole, after, seed)
    for mine, other in zip(second.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert all(float(state["step"]) == 5.0 for state in resumed.state.values())


def test_a_rehearsal_changes_nothing() -> None:
    model = Model()
    optimizer = build_optimizer(model, SECTION, bf16=True)
    assert isinstance(optimizer, FusedAdamW)
    stepped(model, optimizer, 0)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step_without_effect()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    optimizer.step()
    assert not torch.equal(next(model.parameters()), before[0])


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_a_run_with_copies_is_the_run_without(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["training"] |= {
        "precision": "bf16",
        "steps": 6,
        "log_every": 1,
        "ema": 0.5,
        "save_every": 3,
        "keep": 5,
    }
    with_copies = Builder.from_recipe(tiny).train(output=tmp_path / "with", device="cpu")
    assert all(p.dtype == torch.float32 for p in with_copies.policy.parameters())
    saved = AutoModel.from_pretrained(with_copies.checkpoint)
    for name, weight in with_copies.policy.state_dict().items():
        assert torch.equal(saved.state_dict()[name], weight), name
    assert any(not torch.equal(p, p.bfloat16().float()) for p in saved.parameters())
    with monkeypatch.context() as patch:
        patch.setattr(module, "_CAST", set())
        without = Builder.from_recipe(tiny).train(output=tmp_path / "without", device="cpu")
    torch.testing.assert_close(losses(tmp_path / "with"), losses(tmp_path / "without"), rtol=1e-4, atol=1e-5)
    for name, weight in without.policy.state_dict().items():
        torch.testing.assert_close(with_copies.policy.state_dict()[name], weight, rtol=1e-3, atol=1e-4)
    shutil.rmtree(with_copies.checkpoint)
    again = Builder.from_recipe(tiny).train(output=tmp_path / "with", device="cpu", resume=True)
    for name, weight in with_copies.policy.state_dict().items():
        assert torch.equal(again.policy.state_dict()[name], weight), name


def test_gradients_in_another_order_than_their_weights_are_brought_into_it() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 3, 1)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    channels_last(ours, ExitStack())
    fused = build_optimizer(ours, SECTION, bf16=True)
    plain = torch.optim.AdamW(parameter_groups(theirs, SECTION), lr=1e-2)  # type: ignore[arg-type]
    images = torch.randn(2, 4, 8, 8)
    for step in range(4):
        for model in (ours, theirs):
            model(images).square().mean().backward()
        if step % 2:
            ours[0].weight.grad = ours[0].weight.grad.contiguous()
        if step == 2:  # a state of weights in the usual order
            fused.load_state_dict(plain.state_dict())
        for optimizer in (fused, plain):
            optimizer.step()
            optimizer.zero_grad()
    assert ours[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(memory_order(fused.state[p]["exp_avg"]) == memory_order(p) for p in ours.parameters())
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_dimensions_of_one_do_not_matter_to_the_order() -> None:
    weight = torch.empty(3, 6, 1, 1)
    assert memory_order(weight) == memory_order(weight.as_strided(weight.shape, (6, 1, 6, 6))) == (6, 1)
    assert memory_order(torch.empty(3, 6, 2, 2)) != memory_order(
        torch.empty(3, 6, 2, 2, memory_format=torch.channels_last)
    )


def test_weights_in_another_order_are_saved_as_ever(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["policy"]["backbones"]["vision"] = {"type": "conv"}
    policy = Builder.from_recipe(tiny).build()
    expected = {name: value.clone() for name, value in policy.state_dict().items()}
    channels_last(policy, ExitStack())
    assert any(not weight.is_contiguous() for weight in policy.parameters())
    policy.save_pretrained(tmp_path / "policy")
    for name, value in AutoModel.from_pretrained(tmp_path / "policy").state_dict().items():
        assert torch.equal(value, expected[name])
        assert value.is_contiguous()


def test_a_weight_that_gets_its_first_gradient_after_a_resume_takes_up_the_count(tmp_path: Path) -> None:
    def step(model: nn.ModuleList, optimizer: torch.optim.Optimizer, *used: int) -> None:
        optimizer.zero_grad()
        sum(model[i](torch.ones(1, 2)).square().mean() for i in used).backward()
        optimizer.step()

    first = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    before = build_optimizer(first, SECTION, bf16=True)
    for _ in range(5):
        step(first, before, 1)
    torch.save(before.state_dict(), tmp_path / "state.pt")
    resumed = build_optimizer(first, SECTION, bf16=True)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    step(first, resumed, 0, 1)
    assert {float(state["step"]) for state in resumed.state.values()} == {6.0}
    assert list(resumed.state_dict()["state"]) == [0, 1, 2, 3]  # processes may meet gradients in any order


def test_trained_weights_that_are_not_float32_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2).bfloat16())
    with pytest.raises(
        TrainingError, match=r"`0\.weight` trains in bfloat16; keep trained weights in float32"
    ):
        build_optimizer(model, SECTION, bf16=True)


def test_weights_are_copied_where_all_processes_found_them_cast(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copy the same weights everywhere, because DDP sends weights from one process to the others."""
    from policysmith.builder.training.speed import speedups

    monkeypatch.setattr(
        speedups, "gather_object", lambda ours: [*ours, ["head.layers.0"], ["head.layers.0", "x"]]
    )
    seen: list[set[str]] = []
    install = BF16Copies.install

    def watched(shadows: BF16Copies) -> None:
        install(shadows)
        seen.append({str(tuple(copy.shape)) for copy in shadows.copies.values()})

    monkeypatch.setattr(BF16Copies, "install", watched)
    tiny["training"] |= {"precision": "bf16", "steps": 1}
    result = Builder.from_recipe(tiny).train(output=tmp_path, device="cpu")
    layer = result.policy.get_submodule("head.layers.0")
    assert seen == [{str(tuple(p.shape)) for p in layer.parameters()}]
