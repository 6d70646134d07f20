"""A server that thinks ahead while the robot acts."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...components.real_time import Continuation
from ...schemas.errors import SpecError
from .client import RemotePolicy


class Remote:
    """A policy on a server, for `AsyncPolicy`.

    Args:
        policy: The policy.
        continues: Continue the running chunk.

    Raises:
        SpecError: The policy averages chunks at every step, or cannot continue them.
    """

    def __init__(self, policy: RemotePolicy, *, continues: bool = False) -> None:
        if policy.metadata["ensemble"] is not None:
            raise SpecError(
                "the policy on the server averages overlapping chunks at every step, so it cannot think ahead",
                help="act synchronously, or set `policy.ensemble` to null",
            )
        able = policy.metadata.get("continuation")
        if continues and able is None:
            raise SpecError(
                "the policy on the server predicts each chunk anew and cannot continue a running one",
                help="act without real-time chunking (`--think-ahead plain`), or serve another policy",
            )
        self.continuation = Continuation(able["max_delay"]) if continues and able is not None else None
        self._policy = policy
        self._unsent: deque[tuple[int, dict[str, Any]]] = deque()
        self._count = 0
        self.horizon = policy.metadata["horizon"]
        self.execute = min(policy.metadata["execute"] or self.horizon, self.horizon)

    def observe(self, observation: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return an observation with its number, and keep it if the policy will read it as an earlier one."""
        self._count += 1
        seen = self._count, dict(observation)
        if len(self._policy.observation_steps) > 1:
            self._unsent.append(seen)
        return seen

    def think(
        self, seen: tuple[int, dict[str, Any]], running: Tensor | None, delay: int, clamp: bool
    ) -> Tensor:
        """Return the chunk for an observation; later ones may have come meanwhile."""
        number, latest = seen
        while self._unsent and self._unsent[0][0] <= number:
            earlier, observation = self._unsent.popleft()
            if earlier < number:
                self._policy.remember(observation)
        running = running if self.continuation is not None else None
        return self._policy.chunk(latest, clamp=clamp, running=running, delay=delay)

    def reset(self) -> None:
        self._unsent.clear()
        self._policy.reset()


__all__ = ["Remote"]
