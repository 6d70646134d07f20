"""Training with moments in eight bits: losses, the decay of v, states for any AdamW, and memory."""

from __future__ import annotations

import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from policysmith.builder import Builder
from policysmith.builder.convolutions import channels_last
from policysmith.builder.training.optim.build import build_optimizer
from policysmith.builder.training.optim.ema import WeightAverage
from policysmith.builder.training.optim.fused_adamw import FusedAdamW
from policysmith.builder.training.optim.schedule import learning_rate
from policysmith.components.kernels import adamw as kernel
from policysmith.components.kernels.adamw import flat, memory_order
from policysmith.components.kernels.eight_bit import moment_bytes
from policysmith.schemas.recipe import OptimizerSection, ScheduleSection

FP32 = OptimizerSection(lr=3e-3, weight_decay=0.1)
EIGHT = FP32.model_copy(update={"states": "8bit"})


def nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "rounding_words", lambda *_: None)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 8))


def losses(section: OptimizerSection, steps: int) -> Tensor:
    """Train a network to imitate another, with clipping, a schedule and an average of the weights."""
    torch.manual_seed(0)
    teacher, model = network().requires_grad_(False), network()
    optimizer = build_optimizer(model, section, WeightAverage(model, 0.99), bf16=True)
    found = []
    for step in range(steps):
        optimizer.set_rate(learning_rate(step, steps, section.lr, ScheduleSection()))
        inputs = torch.randn(64, 32)
        loss = (model(inputs) - 20.0 * teacher(inputs)).square().mean()
        loss.backward()
        optimizer.clip(1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.detach())
    return torch.stack(found)


def test_losses_are_those_of_float32_moments_within_half_a_percent() -> None:
    ours, theirs = (losses(section, 300).view(-1, 30).mean(1) for section in (EIGHT, FP32))
    assert theirs[-1] < 0.2 * theirs[0]
    torch.testing.assert_close(ours, theirs, rtol=0.005, atol=0.0)


def decayed(steps: int) -> float:
    """Return the rest of a second moment after steps with a gradient of 0, and the exact rest."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(64, 128))
    optimizer = build_optimizer(nn.ParameterList([weight]), EIGHT)
    for step in range(20 + steps):
        weight.grad = torch.randn_like(weight) if step < 20 else torch.zeros_like(weight)
        optimizer.step()
        if step == 19:
            before = optimizer.state_dict()["state"][0]["exp_avg_sq"].sqrt().mean()
    after = optimizer.state_dict()["state"][0]["exp_avg_sq"].sqrt().mean()
    return (after / before / 0.999 ** (steps / 2)).item()


def test_v_decays_where_the_gradient_has_vanished() -> None:
    assert decayed(700) == pytest.approx(1.0, abs=0.02)


def test_rounded_to_nearest_it_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    nearest(monkeypatch)
    assert decayed(700) > 1.3


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    model(torch.randn(8, 32)).square().mean().backward()
    optimizer.step()


def restored(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def test_states_are_float32_and_go_on_to_the_bit(tmp_path: Path) -> None:
    first, second = network(), network()
    before, after = build_optimizer(first, EIGHT), build_optimizer(second, EIGHT)
    for seed in range(5):
        stepped(first, before, seed)
    stepped(second, after, 9)  # what it knew before is forgotten
    torch.save(before.state_dict(), tmp_path / "state.pt")
    weights = [p for group in before.param_groups for p in group["params"]]
    for weight, value in zip(weights, restored(tmp_path / "state.pt")["state"].values(), strict=True):
        assert value.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(moment.dtype == torch.float32 for moment in value.values())
        assert value["exp_avg"].shape == value["exp_avg_sq"].shape == weight.shape
    second.load_state_dict(first.state_dict())
    after.load_state_dict(restored(tmp_path / "state.pt"))
    for seed in range(5, 9):
        stepped(first, before, seed)
        stepped(second, after, seed)
    for mine, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, other)
    for mine, other in zip(
        before.state_dict()["state"].values(), after.state_dict()["state"].values(), strict=True
    ):
        assert all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.mark.parametrize("from_eight", [True, False])
def test_torchs_adamw_goes_on_from_it_and_it_from_torchs(from_eight: bool, tmp_path: Path) -> None:
    first, second = network(), network()
    before, after = (
        build_optimizer(m, s)
        for m, s in zip((first, second), (EIGHT, FP32) if from_eight else (FP32, EIGHT), strict=True)
    )
    assert isinstance(after, FusedAdamW) != from_eight
    for seed in range(3):
        stepped(first, before, seed)
    torch.save(before.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(first.state_dict())
    after.load_state_dict(restored(tmp_path / "state.pt"))
    mine, other = (o.state_dict()["state"] for o in (before, after))
    for key, state in mine.items():
        assert float(state["step"]) == float(other[key]["step"]) == 3.0
        if from_eight:
            assert all(torch.equal(state[name], other[key][name]) for name in state)
        for name, value in state.items():
            torch.testing.assert_close(
                other[key][name], value, rtol=0.07, atol=value.abs().max().item() * 2e-5
            )
    start = torch.cat([p.detach().flatten() for p in first.parameters()])
    stepped(first, before, 3)
    stepped(second, after, 3)
    moved = [torch.cat([p.detach().flatten() for p in m.parameters()]) - start for m in (first, second)]
    assert torch.cosine_similarity(*moved, dim=0) > 0.995


def test_moments_take_a_quarter_and_small_weights_keep_float32() -> None:
    model = network()
    optimizer = build_optimizer(model, EIGHT)
    assert isinstance(optimizer, FusedAdamW)
    stepped(model, optimizer, 0)
    kept = {
        name: sum(t.numel() * t.element_size() for key, t in optimizer.state[p].items() if key != "step")
        for name, p in model.named_parameters()
    }
    for name, weight in model.named_parameters():
        full = 8 * weight.numel()
        assert kept[name] == (full if weight.numel() < 4096 else full // 4 + 8 * weight.numel() // 256), name
    assert moment_bytes(model.parameters(), eight_bit=True) == sum(kept.values())
    large = [torch.empty(1 << 30, device="meta")]
    assert moment_bytes(large, eight_bit=True) / moment_bytes(large, eight_bit=False) < 0.255


def test_blocks_lie_as_the_weight_does() -> None:
    model = nn.Sequential(nn.Conv2d(24, 32, 3), nn.Conv2d(32, 3, 1))
    channels_last(model, ExitStack())
    optimizer = build_optimizer(model, EIGHT)
    model(torch.randn(2, 24, 8, 8)).square().mean().backward()
    optimizer.step()
    weight = model[0].weight
    assert (
        memory_order(optimizer.state[weight]["exp_avg"])
        == memory_order(weight)
        != memory_order(weight.contiguous())
    )
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    index = next(i for i, p in enumerate(weights) if p is weight)
    moment = optimizer.state_dict()["state"][index]["exp_avg"]
    expected = 0.1 * weight.grad
    assert ((moment - expected).abs() <= expected.abs() / 8 + expected.abs().max() * 2.0**-16).all()
    largest = flat(expected.abs()).split(256)[3].max()
    assert largest / 480 <= optimizer.state[weight]["exp_avg_scales"][3] < largest / 240


class Recorder:
    """A reporter that keeps notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, step: int, steps: int) -> None: ...

    def advance(self, step: int) -> None: ...

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def note(self, message: str) -> None:
        self.notes.append(message)

    def close(self) -> None: ...


def test_a_run_says_what_it_saves_and_may_change_to_eight_bits(tiny: dict[str, Any], tmp_path: Path) -> None:
    plain, eight = (
        Builder.from_recipe(tiny),
        Builder.from_recipe(tiny).override({"training.steps": 6, "training.optimizer.states": "8bit"}),
    )
    assert eight.summary is not None
    assert plain.summary is not None
    saved = plain.summary.training_bytes - eight.summary.training_bytes
    recorder = Recorder()
    plain.override({"training.steps": 6, "training.save_every": 3, "training.keep": 5}).train(
        output=tmp_path / "run", device="cpu", reporters=(recorder,)
    )
    assert not [note for note in recorder.notes if "8 bits" in note]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    assert eight.train(output=tmp_path / "run", device="cpu", resume=True, reporters=(recorder,)).steps == 6
    (note,) = (note for note in recorder.notes if "8 bits" in note)
    kept, full = (float(x) for x in re.findall(r"([\d.e-]+) GB", note))
    assert note == f"moments in 8 bits: {kept:.3g} GB instead of {full:.3g} GB"
    assert full == pytest.approx(8e-9 * plain.summary.trainable, rel=0.01)
    assert (full - kept) * 1e9 == pytest.approx(saved, rel=0.02)


def test_weights_that_count_their_steps_apart_go_on_apart(tmp_path: Path) -> None:
    """Large weights with eight bits, and small ones that have a gradient in every other step."""

    def step(model: nn.ParameterList, optimizer: FusedAdamW, number: int) -> None:
        torch.manual_seed(number)
        model[0].grad, model[1].grad = torch.randn(64, 128), torch.randn(8) if number % 2 else None
        optimizer.step()

    def made() -> tuple[nn.ParameterList, FusedAdamW]:
        torch.manual_seed(0)
        model = nn.ParameterList([torch.randn(64, 128), torch.randn(8)])
        optimizer = build_optimizer(model, EIGHT)
        assert isinstance(optimizer, FusedAdamW)
        return model, optimizer

    (whole, ours), (cut, theirs) = made(), made()
    for number in range(10):
        step(whole, ours, number)
    for number in range(6):
        step(cut, theirs, number)
    torch.save((cut.state_dict(), theirs.state_dict()), tmp_path / "state.pt")
    (resumed, again), (weights, states) = made(), torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(weights)
    again.load_state_dict(states)
    for number in range(6, 10):
        step(resumed, again, number)
    assert {float(state["step"]) for state in again.state.values()} == {10.0, 5.0}
    for mine, other in zip(resumed, whole, strict=True):
        assert torch.equal(mine, other)
