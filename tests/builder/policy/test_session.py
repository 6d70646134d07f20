"""Sessions: several robots that share one policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from policysmith.builder import BasePolicyModel, Builder
from policysmith.builder.policy.acting.session import Session

CHANGES: dict[str, dict[str, Any]] = {
    "part of a chunk": {},
    "history": {"data.observation_steps": 3},
    "ensemble": {"policy.execute": 1, "policy.ensemble": 0.3},
}


@pytest.fixture(params=CHANGES)
def policy(request: pytest.FixtureRequest, make_tiny: Callable[[], dict[str, Any]]) -> BasePolicyModel:
    """A policy with state of every kind."""
    return Builder.from_recipe(make_tiny()).override(CHANGES[request.param]).build().eval()


def episode(observation: dict[str, Any], seed: int) -> Iterator[dict[str, Any]]:
    """Yields the observations of a robot of its own."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(5):
        yield {**observation, "observation.state": torch.rand(4, generator=random)}


def test_sessions_do_not_disturb_each_other(policy: BasePolicyModel, observation: dict[str, Any]) -> None:
    def alone(seed: int) -> list[torch.Tensor]:
        policy.reset()
        return [policy.select_action(seen) for seen in episode(observation, seed)]

    expected = [alone(1), alone(2)]
    sessions = [Session(policy), Session(policy)]
    acted: list[list[torch.Tensor]] = [[], []]
    for seen in zip(episode(observation, 1), episode(observation, 2), strict=True):
        for session, now, actions in zip(sessions, seen, acted, strict=True):
            actions.append(session.select_action(now))
    for ours, theirs in zip(acted, expected, strict=True):
        assert torch.equal(torch.stack(ours), torch.stack(theirs))


def test_a_batch_of_sessions_acts_like_each_alone(
    policy: BasePolicyModel, observation: dict[str, Any]
) -> None:
    together, alone = [Session(policy), Session(policy)], [Session(policy), Session(policy)]
    for seen in zip(episode(observation, 1), episode(observation, 2), strict=True):
        samples = [session.observe(now) for session, now in zip(together, seen, strict=True)]
        if samples[0] is not None:
            for session, chunk in zip(together, policy.predict([s for s in samples if s]), strict=True):
                session.take(chunk)
        for session, single, now in zip(together, alone, seen, strict=True):
            torch.testing.assert_close(session.act(), single.select_action(now), atol=1e-5, rtol=1e-5)


def test_a_session_predicts_with_its_source(policy: BasePolicyModel, observation: dict[str, Any]) -> None:
    class Constant:
        def predict(self, samples: Any, generator: Any = None) -> torch.Tensor:
            return torch.full((len(samples), 4, 4), 0.25)

        def continue_chunks(self, samples: Any, running: Any, generator: Any = None) -> torch.Tensor:
            return self.predict(samples)

    session = Session(policy, Constant())
    assert session.select_action(observation).tolist() == [0.25] * 4
    session.reset()
    assert session.select_action(observation, clamp=True).shape == (4,)
