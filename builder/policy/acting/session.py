"""One robot's episode: its history of observations, its running chunk and its ensemble.

    session = Session(policy)
    action = session.select_action(observation)

Several sessions share one policy, each with its own robot. A server that batches their observations takes the
same steps one by one:

    sample = session.observe(observation)      # None while a chunk is running
    if sample is not None:
        session.take(policy.predict([sample])[0])
    action = session.act()
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ....components.real_time import Prefix
from .ensemble import Ensemble
from .observations import History

if TYPE_CHECKING:
    from .robot_interface import RobotInterface


class ChunkSource(Protocol):
    """Whatever predicts the chunks of a policy: the policy itself, or a faster copy of it."""

    def predict(
        self, samples: Sequence[Mapping[str, Any]], generator: torch.Generator | None = None
    ) -> Tensor:
        """Return action chunks (B, H, A) in the robot's units for samples with values (T, ...)."""
        ...

    def continue_chunks(
        self,
        samples: Sequence[Mapping[str, Any]],
        running: Prefix,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return action chunks (B, H, A) that continue running ones, all in the robot's units."""
        ...


@dataclass
class Episode:
    """State of an episode between its steps."""

    history: History = field(default_factory=History)
    actions: deque[Tensor] = field(default_factory=deque)
    """Actions (A,) of the running chunk that are still to come."""
    ensemble: Ensemble = field(default_factory=Ensemble)
    observed: Mapping[str, Any] | None = None
    """Latest admitted time step."""

    def clear(self) -> None:
        """Forget everything."""
        self.history.clear()
        self.actions.clear()
        self.ensemble.clear()
        self.observed = None


class Session:
    """A policy at work on one robot.

    Args:
        policy: Policy in evaluation mode; it admits observations and checks actions.
        source: Predicts its chunks; by default the policy itself.
        episode: State to continue; by default a new one.
    """

    def __init__(
        self, policy: RobotInterface, source: ChunkSource | None = None, episode: Episode | None = None
    ) -> None:
        self.policy = policy
        self._source: ChunkSource = policy if source is None else source
        self._episode = Episode() if episode is None else episode

    @property
    def observed(self) -> Mapping[str, Any] | None:
        """Latest admitted time step; None before the first."""
        return self._episode.observed

    def reset(self) -> None:
        """Forget the running chunk and the observation history: a new episode begins."""
        self._episode.clear()

    @torch.no_grad()
    def select_action(
        self,
        observation: Mapping[str, Any],
        generator: torch.Generator | None = None,
        *,
        clamp: bool = False,
    ) -> Tensor:
        """Return the next action (A,); see `RobotInterface.select_action`."""
        if not isinstance(clamp, bool):
            raise TypeError(f"clamp must be True or False, not {clamp!r}")
        if self.policy.training:
            raise RuntimeError("the policy is in training mode; call `policy.eval()` before `select_action`")
        if (sample := self.observe(observation)) is not None:
            self.take(self._source.predict([sample], generator)[0])
        return self.act(clamp=clamp)

    def observe(self, observation: Mapping[str, Any]) -> dict[str, Any] | None:
        """Remember an observation, and return the sample (T, ...) to predict a chunk for, or None if none is due.

        Raises:
            SpecError: The observation is unlike those of training.
        """
        policy, episode = self.policy, self._episode
        steps = policy.observation_steps()
        admitted = policy.admit(observation)
        episode.history.add(admitted, steps)
        episode.observed = admitted
        return None if episode.actions else policy.to_sample(episode.history.window(steps))

    def take(self, prediction: Tensor) -> Tensor:
        """Run the chunk (H, A) that was predicted for the sample of `observe`, and return it as it is run.

        The returned chunk begins with the action for the newest observation and is as wide as the robot's own
        actions.

        Raises:
            SpecError: An action is not finite, or far outside the range of training.
        """
        policy, episode = self.policy, self._episode
        assert episode.observed is not None
        chunk = policy.to_chunk(prediction, episode.observed)[policy.present :]
        if policy.ensemble is not None:
            episode.actions.append(episode.ensemble.add(chunk, policy.ensemble))
        else:
            episode.actions.extend(chunk[: policy.execute])
        return chunk

    def act(self, *, clamp: bool = False) -> Tensor:
        """Return the next action (A,) of the running chunk.

        With `clamp`, it is clamped to the range of the training episodes, dimension by dimension.
        """
        action = self._episode.actions.popleft()
        return self.clamped(action) if clamp else action

    def act_all(self) -> Tensor:
        """Return all actions (N, A) that remain of the running chunk, as if they had been run."""
        actions = torch.stack(list(self._episode.actions))
        self._episode.actions.clear()
        return actions

    def clamped(self, actions: Tensor) -> Tensor:
        """Return actions (..., A) clamped to the range of the training episodes, dimension by dimension."""
        assert self._episode.observed is not None
        return self.policy.ranges_of(self._episode.observed).clamp("action", actions)


__all__ = ["ChunkSource", "Episode", "Session"]
