"""Acting while thinking: the next chunk is predicted while the robot runs the current one.

    actor = AsyncPolicy(Local(policy, continues=True))
    action = actor.select_action(observation)

A chunk that was predicted from the observation of step t and arrives at step t + d continues at its action d: the first d lie
in the past and are never run. Without an action in time, the robot holds the last one or waits, and the miss is counted.

With `continues`, the new chunk continues the running one (real-time chunking; see `components.real_time`). The delay d that it
expects is the median of those that were measured, without the first prediction, which may compile. Before any was measured, it
is the longest that the policy was trained for.
"""

from __future__ import annotations

import logging
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ....components.features import chunk_size
from ....components.real_time import Continuation
from ....schemas.errors import SpecError
from ....schemas.specs import Spec
from .continuing import prefix_of, require_continuation
from .robot_interface import RobotInterface
from .session import ChunkSource, Session

log = logging.getLogger(__name__)
Late = Literal["hold", "wait"]
RECENT = 9
"""Number of delays whose median is expected next."""


class Thinker(Protocol):
    """Predicts chunks from observations, here or on a server."""

    horizon: int
    """Number of actions H of a chunk."""
    execute: int
    """Number of actions to run before looking again."""
    continuation: Continuation | None
    """Method of continuing the running chunk; None if it is dropped."""

    def observe(self, observation: Mapping[str, Any]) -> Any:
        """Remember an observation, and return what `think` needs of it."""
        ...

    def think(self, seen: Any, running: Tensor | None, delay: int, clamp: bool) -> Tensor:
        """Return the chunk (H, A) for an observation; `running` (N, A) holds the actions that would follow it."""
        ...

    def reset(self) -> None:
        """Forget the last episode."""
        ...


class Local:
    """A policy of this process.

    Args:
        policy: Policy in evaluation mode.
        source: Predicts its chunks; by default the policy itself.
        continues: Continue the running chunk.

    Raises:
        SpecError: The policy averages chunks, or cannot continue them.
    """

    def __init__(
        self, policy: RobotInterface, source: ChunkSource | None = None, *, continues: bool = False
    ) -> None:
        if policy.ensemble is not None:
            raise SpecError(
                "the policy averages overlapping chunks at every step, so it cannot think ahead",
                help="act synchronously, or set `policy.ensemble` to null",
            )
        if continues:
            require_continuation(policy)
        self._policy, self._source = policy, source or policy
        self._session = Session(policy, source)
        self.continuation = policy.continuation if continues else None
        specs = {key: Spec.from_json(spec) for key, spec in policy.content["specs"].items()}
        steps, _ = chunk_size(specs)
        self.horizon = steps - policy.present
        self.execute = min(policy.execute or self.horizon, self.horizon)

    def observe(self, observation: Mapping[str, Any]) -> Any:
        sample = self._session.observe(observation)
        assert sample is not None
        return sample, self._session.observed

    @torch.no_grad()
    def think(self, seen: Any, running: Tensor | None, delay: int, clamp: bool) -> Tensor:
        sample, observed = seen
        if self.continuation is not None and running is not None:
            prefix = prefix_of(self._policy, observed, running, delay)
            prediction = self._source.continue_chunks([sample], prefix)[0]
        else:
            prediction = self._source.predict([sample])[0]
        chunk = self._policy.to_chunk(prediction, observed)[self._policy.present :]
        return self._policy.ranges_of(observed).clamp("action", chunk) if clamp else chunk

    def reset(self) -> None:
        self._session.reset()


class Worker(Protocol):
    """Place where chunks are predicted while the robot moves."""

    def start(self, think: Callable[[], Tensor]) -> None:
        """Begin."""
        ...

    def ready(self) -> bool:
        """Return whether the chunk is there; asked once in every control step."""
        ...

    def result(self) -> Tensor:
        """Return the chunk; wait for it if need be."""
        ...


class ThreadWorker:
    """A thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "policysmith-think")
        self._future: Future[Tensor] | None = None

    def start(self, think: Callable[[], Tensor]) -> None:
        self._future = self._thread.submit(think)

    def ready(self) -> bool:
        return self._future is not None and self._future.done()

    def result(self) -> Tensor:
        assert self._future is not None
        return self._future.result()


class DelayedWorker:
    """A worker for simulators, whose time stands still meanwhile: it takes a fixed number of control steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._asked = 0
        self._chunk: Tensor | None = None

    def start(self, think: Callable[[], Tensor]) -> None:
        self._chunk, self._asked = think(), -1

    def ready(self) -> bool:
        self._asked += 1
        return self._asked >= self.steps

    def result(self) -> Tensor:
        assert self._chunk is not None
        return self._chunk


class AsyncPolicy:
    """A policy that thinks ahead; `select_action` and `reset` are those of the policy.

    Args:
        thinker: Predicts the chunks.
        worker: Where it thinks, by default in a thread.
        late: What happens without an action in time: `hold` repeats the last one, `wait` slows the robot down.
    """

    def __init__(self, thinker: Thinker, worker: Worker | None = None, *, late: Late = "hold") -> None:
        self._thinker, self._late = thinker, late
        self._worker: Worker = ThreadWorker() if worker is None else worker
        self._delays: deque[int] = deque(maxlen=RECENT)
        self.misses = 0
        """Control steps for which there was no action in time."""
        self._thinking_since: int | None = None
        self._warned = False
        self._clear()

    def _clear(self) -> None:
        self._chunk: Tensor | None = None
        self._start = self._now = 0
        self._last: Tensor | None = None

    @property
    def delay(self) -> int:
        """Control steps that a prediction is expected to take: the median of the recent ones, rounded up."""
        return -int(-statistics.median(self._delays) // 1) if self._delays else 0

    @property
    def delays(self) -> tuple[int, ...]:
        """Recent delays in control steps, oldest first."""
        return tuple(self._delays)

    def reset(self) -> None:
        """Forget the last episode, once a running prediction has ended."""
        if self._thinking_since is not None:
            self._worker.result()
            self._thinking_since = None
        self._clear()
        self._thinker.reset()

    def select_action(
        self, observation: Mapping[str, Any], generator: torch.Generator | None = None, *, clamp: bool = False
    ) -> Tensor:
        """Return the action (A,) of this control step.

        Raises:
            SpecError: The policy refuses an observation or its own actions, or a generator is given.
            ServerError: The server is lost.
        """
        if generator is not None:
            raise SpecError(
                "an asynchronous policy draws from torch's own generator", help="call `torch.manual_seed`"
            )
        seen = self._thinker.observe(observation)
        if self._thinking_since is not None and self._worker.ready():
            self._take()
        if self._thinking_since is None and self._due():
            self._think(seen, clamp)
        if self._chunk is None:  # the first of an episode, before which the robot stands still
            self._chunk, self._thinking_since = self._worker.result(), None
        elif self._now - self._start >= len(self._chunk):
            self.misses += 1
            if self._late == "wait":
                self._wait(seen, clamp)
        index = self._now - self._start
        self._now += 1
        if index < len(self._chunk):
            self._last = self._chunk[index]
        assert self._last is not None
        return self._last

    def _wait(self, seen: Any, clamp: bool) -> None:
        """Wait for the chunk. If it has no action for now either, look again: the robot stands still."""
        if self._thinking_since is not None:
            self._take()
        if self._chunk is None or self._now - self._start >= len(self._chunk):
            self._chunk, self._start = self._thinker.think(seen, None, 0, clamp), self._now

    def _due(self) -> bool:
        """Return whether it is time to look again: `execute` actions later, or in time for the end of the chunk."""
        if self._chunk is None:
            return True
        execute = min(self._thinker.execute, len(self._chunk) - self.delay)
        return self._now - self._start >= max(execute, 1)

    def _think(self, seen: Any, clamp: bool) -> None:
        running = None if self._chunk is None else self._chunk[self._now - self._start :]
        running = None if running is None or not len(running) else running
        delay = self._expected()
        self._worker.start(lambda: self._thinker.think(seen, running, delay, clamp))
        self._thinking_since = self._now
        if self._chunk is not None and self._worker.ready():
            self._take()

    def _expected(self) -> int:
        """Return the delay to continue with; say once if it is longer than any that the policy was trained for."""
        continuation = self._thinker.continuation
        most = None if continuation is None else continuation.max_delay
        if most is None:
            return self.delay
        if not self._delays:
            return most
        if self.delay > most and not self._warned:
            self._warned = True
            log.warning(
                "thinking takes %d steps, and the policy was trained to continue after at most %d, so its chunks may "
                "jump; train with a larger `head.delay.max`, or use a faster device (logged once)",
                self.delay,
                most,
            )
        return self.delay

    def _take(self) -> None:
        """Continue with the chunk that has arrived."""
        assert self._thinking_since is not None
        self._delays.append(self._now - self._thinking_since)
        self._chunk, self._start = self._worker.result(), self._thinking_since
        self._thinking_since = None


__all__ = ["AsyncPolicy", "DelayedWorker", "Late", "Local", "Thinker", "ThreadWorker", "Worker"]
