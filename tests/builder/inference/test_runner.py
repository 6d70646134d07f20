"""Graphs that a runner keeps and drops, and its messages, on stand-ins for CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from policysmith.builder import Builder, RecipePolicy
from policysmith.builder.capture import CaptureError
from policysmith.builder.inference import runner as runners
from policysmith.builder.inference.example import example_samples
from policysmith.builder.inference.graphs import Graphs
from policysmith.builder.inference.runner import Runner
from policysmith.components.randomness.generator import Tape, categorical, normal
from policysmith.components.real_time import Prefix
from policysmith.schemas.errors import SpecError

TINY = Path(__file__).resolve().parents[3] / "recipes" / "tiny"


class Pretended:
    """A stand-in for a captured computation: replays it from inputs and numbers that it keeps."""

    captured = 0
    freed = 0
    refused: tuple[str, ...] = ()
    """Stages that cannot be captured."""

    def __init__(self, compute: Callable[..., Any], inputs: Mapping[str, Tensor], *_: Any) -> None:
        self._compute, self._tape = compute, Tape()
        self._inputs = {key: value.clone() for key, value in inputs.items()}
        with self._tape.recording():
            compute(dict(self._inputs))
        type(self).captured += 1

    def __call__(self, inputs: Mapping[str, Tensor], generator: torch.Generator | None) -> Any:
        for key, value in inputs.items():
            self._inputs[key].copy_(value)
        self._tape.fill(generator)
        with self._tape.playing():
            return self._compute(dict(self._inputs))

    def free(self) -> None:
        type(self).freed += 1


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> type[Pretended]:
    kind = type("Fresh", (Pretended,), {})
    monkeypatch.setattr(runners, "Captured", kind)
    monkeypatch.setattr(runners, "capturable", lambda device: True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return kind


def built(name: str) -> RecipePolicy:
    torch.manual_seed(0)
    policy = Builder.from_recipe(TINY / f"{name}.yaml").build().eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
    assert isinstance(policy, RecipePolicy)
    return policy


def predicted(source: Any, count: int, seed: int) -> Tensor:
    samples = example_samples(source.policy if isinstance(source, Runner) else source, count, seed)
    chunk: Tensor = source.predict(samples, torch.Generator().manual_seed(seed))
    return chunk


@pytest.mark.parametrize("name", ["diffusion_policy", "smolvla", "bc_transformer", "octo", "vqbet"])
def test_replays_follow_the_observations_and_the_generator(name: str, pretended: type[Pretended]) -> None:
    policy = built(name)
    runner = policy.runner()
    for seed, count in enumerate([1, 2, 1, 1]):
        torch.testing.assert_close(
            predicted(runner, count, seed), predicted(policy, count, seed), rtol=1e-4, atol=1e-5
        )
    assert pretended.captured == 2


def test_replays_continue_what_they_are_given(pretended: type[Pretended]) -> None:
    """Chunks that begin and chunks that continue have graphs of their own, which serve any prefix."""
    changes = {"policy.head.delay": {"max": 2}, "data.past_actions": 0}
    policy = Builder.from_recipe(TINY / "dit_flow.yaml").override(changes).build().eval()
    runner = policy.runner()
    runner.warm_up([1])
    captured = pretended.captured
    for seed, delay in enumerate([0, 2, 1]):
        samples = example_samples(policy, 1, seed)
        running = predicted(policy, 1, seed + 10)
        prefix = Prefix(running, (torch.arange(running.shape[1]) < delay).float()[None])
        found, expected = (
            source.continue_chunks(samples, prefix, torch.Generator().manual_seed(seed))
            for source in (runner, policy)
        )
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(found[:, :delay], running[:, :delay])
    assert pretended.captured == captured == 2


def test_the_least_recently_used_graph_is_dropped(pretended: type[Pretended]) -> None:
    policy = built("vit_mlp")
    runner = Runner(policy, kinds=2)
    for count in (1, 2, 1, 3):
        predicted(runner, count, 0)
    assert (pretended.captured, pretended.freed) == (3, 1)
    predicted(runner, 1, 0)
    assert pretended.captured == 3
    predicted(runner, 2, 0)
    assert (pretended.captured, pretended.freed) == (4, 2)


@pytest.mark.parametrize(("stage", "index"), [("head", 3), ("backbones.proprio", 2), ("transforms", 0)])
def test_what_cannot_be_captured_runs_eagerly_and_says_so_once(
    stage: str,
    index: int,
    pretended: type[Pretended],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = built("vit_mlp")
    runner = policy.runner()
    names = runner._stages.names

    def refuses(self: Pretended, compute: Any, inputs: Any, *rest: Any) -> None:
        if runner._captured_stages > names.index(stage):
            runner._stages.current = names.index(stage)
            raise CaptureError("operation not permitted")
        Pretended.__init__(self, compute, inputs, *rest)

    monkeypatch.setattr(pretended, "__init__", refuses)
    for seed in range(3):
        assert torch.equal(predicted(runner, 2, seed), predicted(policy, 2, seed))
    [record] = caplog.records
    assert f"`{stage}` cannot be part of a CUDA graph" in record.message
    assert "operation not permitted" in record.message
    assert pretended.captured == (stage != "transforms")


def test_instructions_are_encoded_once() -> None:
    policy = built("octo")
    runner = policy.runner()
    assert isinstance(runner.policy, RecipePolicy)
    [name] = runner.policy.text_backbones
    encoder, seen = runner.policy.backbones[name].model, []
    encoder.register_forward_hook(lambda module, inputs, output: seen.append(1))
    samples = example_samples(policy, 3)
    for sample, task in zip(samples, ["open it", "close it", "open it"], strict=True):
        sample["task"] = task
    for _ in range(2):
        found = runner.predict(samples, torch.Generator().manual_seed(0))
    assert len(seen) == 2
    torch.testing.assert_close(found, policy.predict(samples, torch.Generator().manual_seed(0)))
    samples[0]["task"] = "push it"
    runner.predict(samples)
    assert len(seen) == 3


def test_a_runner_sees_training_go_on_and_keeps_its_precision() -> None:
    policy = built("vit_mlp")
    runner, half = policy.runner(), policy.runner(precision="bfloat16")
    before = predicted(half, 1, 0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.5)
    assert torch.equal(predicted(runner, 1, 0), predicted(policy, 1, 0))
    assert torch.equal(predicted(half, 1, 0), before)
    assert half.policy.dtype is torch.bfloat16
    assert all(parameter.requires_grad for parameter in policy.head.parameters())
    with pytest.raises(SpecError, match="`bfloat16`"):
        policy.runner(precision="float16")  # type: ignore[arg-type]


def test_a_runner_acts_as_the_policy(observation: dict[str, Any]) -> None:
    policy = built("diffusion_policy")
    runner = policy.runner()
    runner.warm_up([1, 2])
    for source in (runner, policy):
        source.reset()
    for step in range(3):
        actions = [
            source.select_action(observation, torch.Generator().manual_seed(step), clamp=True)
            for source in (runner, policy)
        ]
        assert torch.equal(*actions)


def test_absurd_and_missing_numbers_are_refused() -> None:
    runner = built("vit_mlp").runner()
    samples = example_samples(runner.policy, 1)
    samples[0]["observation.state"] = samples[0]["observation.state"] * float("nan")
    with pytest.raises(SpecError, match="not finite"):
        runner.predict(samples)
    assert isinstance(runner.policy, RecipePolicy)
    with torch.no_grad():
        next(iter(runner.policy.head.parameters())).fill_(float("inf"))
    with pytest.raises(SpecError, match="`action` is not finite"):
        runner.predict(example_samples(runner.policy, 1))


def test_a_tape_repeats_the_draws_of_a_generator() -> None:
    def compute(generator: torch.Generator | None = None) -> list[Tensor]:
        place = torch.device("cpu")
        first = normal((3, 2), place, generator)
        return [first, categorical(torch.zeros(5, 4), generator), normal((7,), place, generator)]

    tape, generator = Tape(), torch.Generator().manual_seed(5)
    with tape.recording():
        compute()
    for seed in (1, 2):
        expected = compute(generator.manual_seed(seed))
        tape.fill(generator.manual_seed(seed))
        with tape.playing():
            assert all(map(torch.equal, compute(), expected))
    with pytest.raises(RuntimeError, match="other numbers"), tape.playing():
        normal((2, 2), torch.device("cpu"))
    with pytest.raises(RuntimeError, match="fewer numbers"), tape.playing():
        normal((3, 2), torch.device("cpu"))


@pytest.mark.gpu
def test_graphs_come_and_go_on_a_gpu() -> None:
    policy = built("dit_flow")
    runner = Runner(policy, "cuda", "float32", kinds=2)
    assert isinstance(runner._graphs, Graphs)
    for seed, count in enumerate([1, 2, 3, 1, 3, 2, 1]):
        torch.testing.assert_close(
            predicted(runner, count, seed), predicted(policy, count, seed), rtol=1e-3, atol=1e-3
        )
        assert len(runner._graphs) <= 2
