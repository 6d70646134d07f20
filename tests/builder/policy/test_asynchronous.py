"""Acting while thinking, with delays that the test decides."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from policysmith.builder import BasePolicyModel, Builder
from policysmith.builder.inference.example import example_samples
from policysmith.builder.policy.acting.asynchronous import AsyncPolicy, DelayedWorker, Local
from policysmith.builder.policy.acting.session import Session
from policysmith.components.base import ActionHead
from policysmith.components.real_time import Continuation, Prefix
from policysmith.schemas.errors import SpecError

RECIPES = sorted((Path(__file__).resolve().parents[3] / "recipes" / "tiny").glob("*.yaml"))
FLOW = {"type": "flow_matching", "network": {"type": "dit", "width": 16, "depth": 1, "heads": 2}, "steps": 5}


class Numbered:
    """Chunks whose actions say from which observation they come, and which step they are for."""

    def __init__(self, horizon: int, execute: int, continuation: Continuation | None = None) -> None:
        self.horizon, self.execute, self.continuation = horizon, execute, continuation
        self.running: list[Any] = []
        self.now = -1

    def observe(self, observation: Any) -> int:
        self.now += 1
        return self.now

    def think(self, seen: int, running: Any, delay: int, clamp: bool) -> torch.Tensor:
        self.running.append(None if running is None else ([r[1].item() for r in running], delay))
        return torch.tensor([[seen, seen + index] for index in range(self.horizon)]).float()

    def reset(self) -> None:
        self.now = -1


def acted(actor: AsyncPolicy, steps: int) -> list[tuple[int, int]]:
    """Return the observation and the intended step of each action."""
    return [tuple(map(int, actor.select_action({}).tolist())) for _ in range(steps)]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("horizon", "execute", "delay"), [*itertools.product([4, 8], [1, 2, 4], [0, 1, 2, 3])]
)
def test_every_action_is_for_the_step_at_which_it_runs(horizon: int, execute: int, delay: int) -> None:
    thinker = Numbered(horizon, execute)
    actor = AsyncPolicy(thinker, DelayedWorker(delay))
    found = acted(actor, 40)
    late = [now for now, (_, intended) in enumerate(found) if intended != now]
    assert len(late) == actor.misses
    for now in late:  # held
        assert found[now] == found[now - 1]
    settled = [seen for seen, _ in found[12:]]
    if delay + min(execute, horizon - delay) <= horizon and delay < horizon - 1:
        assert not [now for now in late if now >= 12]
        looks = sorted(set(settled))
        assert {b - a for a, b in itertools.pairwise(looks)} == {
            max(execute, delay, 1) if execute + delay <= horizon else horizon - delay
        }
    assert set(actor.delays) == {delay}


def test_without_delay_it_acts_like_the_synchronous_policy(
    tiny: dict[str, Any], observation: dict[str, Any]
) -> None:
    policy = Builder.from_recipe(tiny).override({"data.observation_steps": 2}).build().eval()
    session, actor = Session(policy), AsyncPolicy(Local(policy), DelayedWorker(0))
    for _ in range(2):
        for step in range(6):
            seen = {**observation, "observation.state": torch.full((4,), step / 10.0)}
            assert torch.equal(actor.select_action(seen, clamp=True), session.select_action(seen, clamp=True))
        actor.reset()
        session.reset()


def test_a_robot_that_waits_never_repeats_an_action() -> None:
    actor = AsyncPolicy(Numbered(4, 4), DelayedWorker(100), late="wait")
    found = acted(actor, 20)
    assert [intended for _, intended in found] == list(range(20))
    assert actor.misses > 0


def test_the_expected_delay_is_the_median_of_recent_ones_without_the_first() -> None:
    worker = DelayedWorker(7)
    thinker = Numbered(20, 5)
    actor = AsyncPolicy(thinker, worker)
    actor.select_action({})
    assert actor.delay == 0  # the first prediction is not counted
    worker.steps = 2
    acted(actor, 20)
    worker.steps = 9  # one slow prediction changes nothing
    acted(actor, 9)
    worker.steps = 2
    acted(actor, 12)
    assert actor.delay == 2
    assert 9 in actor.delays
    running, delay = thinker.running[-1]
    assert delay == 2
    assert running == list(range(int(running[0]), int(running[0]) + len(running)))


def test_thinking_in_a_thread_does_not_hold_up_the_robot() -> None:
    class Slow(Numbered):
        def think(self, seen: int, running: Any, delay: int, clamp: bool) -> torch.Tensor:
            if seen > 0:
                assert go.wait(10)
            return super().think(seen, running, delay, clamp)

    go = threading.Event()
    actor = AsyncPolicy(Slow(4, 2))
    assert [intended for _, intended in acted(actor, 6)] == [0, 1, 2, 3, 3, 3]
    assert actor.misses == 2
    go.set()
    while not actor._worker.ready():
        pass
    assert acted(actor, 1) == [(2, 5)] or actor.misses > 2
    actor.reset()
    assert acted(actor, 1) == [(0, 0)]


def test_a_guided_chunk_continues_the_running_one(tiny: dict[str, Any], observation: dict[str, Any]) -> None:
    policy = Builder.from_recipe(tiny).override({"policy.head": FLOW, "data.horizon": 8}).build().eval()
    windowed = {key: value if isinstance(value, str) else value[None] for key, value in observation.items()}
    sample = policy.to_sample(policy.admit(windowed, windowed=True))
    mean = torch.tensor(policy.config.statistics["action"]["mean"])
    spread = torch.tensor(policy.config.statistics["action"]["std"])
    running = (mean + 0.5 * spread).expand(1, 8, 4)

    def distance(weights: torch.Tensor) -> torch.Tensor:
        """Return the distance of each step from the running chunk, in units of the data, over several noises."""
        torch.manual_seed(0)
        chunks = [policy.continue_chunks([sample], Prefix(running, weights[None]))[0] for _ in range(8)]
        away = (torch.stack(chunks) - running).abs() / spread
        return away[..., spread > 1e-6].mean((0, 2))  # the gripper may never have moved

    free, held = distance(torch.zeros(8)), distance(torch.tensor([1.0] * 4 + [0.0] * 4))
    assert (held[:4] < 0.3 * free[:4]).all(), (held, free)
    assert held[4:].mean() > 2.0 * held[:4].mean()
    torch.manual_seed(0)
    plain = policy.predict([sample])[0]
    torch.manual_seed(0)
    torch.testing.assert_close(policy.continue_chunks([sample], Prefix(running, torch.zeros(1, 8)))[0], plain)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_a_denoising_head_continues_chunks(recipe: Path) -> None:
    """By a given prefix where the head can be trained so, which then is exact, and by guidance elsewhere."""
    head = Builder.from_recipe(recipe).recipe.head
    assert head is not None
    if head[0].inpaint is ActionHead.inpaint:
        pytest.skip("its head cannot, and says so: see the contract of heads")
    changes: dict[str, Any] = {"policy.ensemble": None, "data.past_actions": 0}
    if "delay" in type(head[1]).model_fields:
        changes["policy.head.delay"] = {"max": 2}
    policy = Builder.from_recipe(recipe).override(changes).build().eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
    thinker = Local(policy, policy.runner(), continues=True)
    (sample,) = example_samples(policy, 1)
    seen = (sample, {key: value for key, value in sample.items() if key == "embodiment"})
    running = thinker.think(seen, None, 0, False)[1:]
    chunk = thinker.think(seen, running, 2, False)
    assert chunk.shape == (thinker.horizon, running.shape[1])
    if "policy.head.delay" in changes:
        spread = torch.tensor(policy.config.statistics["action"]["std"])
        torch.testing.assert_close(chunk[:2], running[:2], atol=1e-4 * float(spread.max()), rtol=1e-4)
        assert not torch.allclose(chunk[2:5], running[2:5], atol=1e-3 * float(spread.max()))


def test_the_first_prefix_is_as_long_as_any_in_training(caplog: pytest.LogCaptureFixture) -> None:
    """Its delay is not known yet. Longer delays than those of training are told once."""
    worker, thinker = DelayedWorker(2), Numbered(12, 4, Continuation(max_delay=3))
    actor = AsyncPolicy(thinker, worker)
    acted(actor, 9)
    assert [seen and seen[1] for seen in thinker.running] == [None, 3, 2]
    assert not caplog.messages
    worker.steps = 5
    acted(actor, 80)
    assert thinker.running[-1][1] == 5
    (message,) = caplog.messages
    assert "thinking takes" in message
    assert "at most 3" in message


def test_guidance_keeps_chunks_together(tiny: dict[str, Any], observation: dict[str, Any]) -> None:
    """Two chunks of a policy that has learned nothing agree only if the second continues the first."""
    policy = Builder.from_recipe(tiny).override({"policy.head": FLOW, "data.horizon": 8}).build().eval()

    def jump(guided: bool) -> float:
        torch.manual_seed(1)
        actor = AsyncPolicy(Local(policy, continues=guided), DelayedWorker(2))
        actions = torch.stack([actor.select_action(observation) for _ in range(40)])
        return float((actions[1:] - actions[:-1]).abs().max())

    assert jump(True) < 0.7 * jump(False)


@pytest.mark.parametrize(
    "changes", [{"policy.execute": 1, "policy.ensemble": 0.3}, {"policy.head.type": "mlp"}], ids=str
)
def test_what_cannot_think_ahead_is_refused(
    changes: dict[str, Any], tiny: dict[str, Any], observation: dict[str, Any]
) -> None:
    policy: BasePolicyModel = Builder.from_recipe(tiny).override(changes).build().eval()

    def act() -> None:
        actor = AsyncPolicy(Local(policy, continues=True), DelayedWorker(0))
        for _ in range(6):
            actor.select_action(observation)

    with pytest.raises(SpecError, match=r"think ahead|cannot continue"):
        act()
