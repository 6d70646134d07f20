"""A policy behind openpi's websocket protocol, for one or several robots.

    server = PolicyServer(policy, Limits(token="secret"))
    asyncio.run(server.run("127.0.0.1", 8000, ready=print))

Every connection is a session with an observation history of its own. The address also answers HTTP requests: `/healthz`
with 200 once the policy is warm, and `/metrics`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import torch
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from ...components.features import chunk_size
from ...components.real_time import Prefix
from ...schemas.errors import SpecError
from ...schemas.specs import Spec
from ..data.signals import Signals
from ..inference.example import example_samples
from ..policy import BasePolicyModel
from ..policy.acting.continuing import prefix_of
from ..policy.acting.session import ChunkSource, Session
from .batching import Batcher
from .metrics import Metrics
from .observations import Translator
from .protocol import REQUEST, Request, pack, read_request, unpack

log = logging.getLogger(__name__)
Ready = Callable[[str], None]
_STOPS = "the server stops"


@dataclass(frozen=True)
class Limits:
    """Bounds on what robots may ask of a server."""

    token: str | None = None
    """Token that robots must send; None for none."""
    clients: int = 16
    """Largest number of connections."""
    message: int = 32 * 2**20
    """Largest message in bytes."""
    batch: int = 8
    """Largest number of observations predicted at once."""
    window: float = 0.002
    """Longest wait of an observation for others, in seconds."""
    patience: float = 20.0
    """Time in seconds after which a robot that answers no ping, or takes no answer, is disconnected."""


class PolicyServer:
    """A policy behind a websocket.

    Args:
        policy: Policy in evaluation mode.
        limits: Bounds on what robots may ask.
        names: Keys of the robots by those of the policy, where they differ.
        source: Predicts its chunks; by default the policy itself.

    Raises:
        SpecError: A key of `names` is none of the policy's.
    """

    def __init__(
        self,
        policy: BasePolicyModel,
        limits: Limits | None = None,
        *,
        names: Mapping[str, str] | None = None,
        source: ChunkSource | None = None,
    ) -> None:
        self.policy, self.limits = policy, limits or Limits()
        self.metrics = Metrics()
        self._translator = Translator(policy, names)
        self._source: ChunkSource = policy if source is None else source
        self._batcher: Batcher
        self._robots: dict[ServerConnection, bool] = {}
        """Open connections, and whether a message of each is being answered."""
        self.answers = 0
        """Number of messages answered without an error."""
        self._ready = self._stops = False

    @property
    def metadata(self) -> dict[str, Any]:
        """First message of a connection: what the policy expects and returns."""
        policy, robots, continuation = self.policy, self.policy.robots.names, self.policy.continuation
        specs = {key: Spec.from_json(spec) for key, spec in policy.content["specs"].items()}
        signals = {name: Signals.of_policy(policy.content, name) for name in robots or [None]}
        return {
            REQUEST: version("policysmith"),
            "policy": policy.content["recipe"].get("name", ""),
            "observation": self._translator.expected,
            "observation_steps": policy.observation_steps(),
            "robots": list(robots),
            "signals": {name or "": signal_.to_json() for name, signal_ in signals.items()},
            "action_dim": {name or "": _width(policy, name) for name in signals},
            "horizon": chunk_size(specs)[0] - policy.present,
            "execute": policy.execute,
            "ensemble": policy.ensemble,
            "continuation": continuation and {"max_delay": continuation.max_delay},
        }

    async def run(self, host: str, port: int, *, ready: Ready | None = None) -> int:
        """Serve until SIGTERM or SIGINT, or until canceled, and return the number of the signal.

        Messages that have arrived by then are answered.

        Args:
            host: Address to listen on.
            port: Port to listen on; 0 for any.
            ready: Called with the address once the policy is warm.

        Raises:
            OSError: The address cannot be listened on.
        """
        limits, loop = self.limits, asyncio.get_running_loop()
        self._batcher = Batcher(
            self._source, self.metrics, lambda: len(self._robots), most=limits.batch, window=limits.window
        )
        stopped: asyncio.Future[int] = loop.create_future()
        former = _on_signals(loop, stopped)
        batching = asyncio.create_task(self._batcher.run())
        try:
            async with serve(
                self._talk,
                host,
                port,
                process_request=self._admit,
                origins=[None],  # a web page of another site must not reach a robot's server
                compression=None,
                max_size=limits.message,
                max_queue=2,
                ping_interval=limits.patience,
                ping_timeout=limits.patience,
                close_timeout=5,
            ) as server:
                await self._warm_up()
                self._ready = True
                if ready is not None:
                    address, bound = next(iter(server.sockets)).getsockname()[:2]
                    ready(f"ws://{f'[{address}]' if ':' in address else address}:{bound}")
                number = await stopped
                await self._drain(server)
            return number
        finally:
            batching.cancel()
            await asyncio.gather(batching, return_exceptions=True)
            for caught, handler in former.items():
                loop.remove_signal_handler(caught)
                signal.signal(caught, handler)

    async def _warm_up(self) -> None:
        """Predict batches of every size that will occur."""
        size = 1
        while size <= self.limits.batch:
            samples = example_samples(self.policy, size)
            chunks = await self._batcher.warm_up(samples)
            if self.policy.continuation is not None:
                await self._batcher.warm_up(samples, Prefix(chunks, torch.ones(chunks.shape[:2])))
            size *= 2

    async def _drain(self, server: Server) -> None:
        """Accept no more robots, answer what they have sent, and disconnect them."""
        self._ready, self._stops = False, True
        server.close(close_connections=False)
        for connection, answering in self._robots.items():
            if not answering:
                asyncio.ensure_future(connection.close(CloseCode.GOING_AWAY, _STOPS))  # noqa: RUF006
        try:
            async with asyncio.timeout(self.limits.patience):
                await server.wait_closed()
        except TimeoutError:
            for connection in self._robots:
                connection.transport.abort()

    def _admit(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Answer an HTTP request, or return None for a websocket that may be opened."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            status = HTTPStatus.OK if self._ready else HTTPStatus.SERVICE_UNAVAILABLE
            return connection.respond(status, "ok\n" if self._ready else "not ready\n")
        if not self._has_token(request):
            self.metrics.refusals.labels("token").inc()
            return connection.respond(
                HTTPStatus.UNAUTHORIZED, "send the server's token as `Authorization: Bearer TOKEN`\n"
            )
        if path == "/metrics":
            return connection.respond(HTTPStatus.OK, self.metrics.text())
        if not self._ready:
            self.metrics.refusals.labels("starting").inc()
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "the policy is not ready; try again\n")
        if len(self._robots) >= self.limits.clients:
            self.metrics.refusals.labels("clients").inc()
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"the server has {self.limits.clients} robots already, its limit\n",
            )
        return None

    def _has_token(self, request: HttpRequest) -> bool:
        if self.limits.token is None:
            return True
        kind, _, sent = request.headers.get("Authorization", "").partition(" ")
        known = kind in ("Bearer", "Api-Key")  # openpi's client sends the latter
        return hmac.compare_digest(sent.strip().encode(), self.limits.token.encode()) and known

    async def _talk(self, connection: ServerConnection) -> None:
        """Answer the messages of one robot until it leaves."""
        session = Session(self.policy, self._source)
        self._robots[connection] = False
        self.metrics.clients.set(len(self._robots))
        try:
            await self._send(connection, pack(self.metadata))
            async for message in connection:
                self._robots[connection] = True
                answer = await self._answer(session, message)
                await self._send(connection, answer)
                self.answers += isinstance(answer, bytes)
                self._robots[connection] = False
                if self._stops:
                    await connection.close(CloseCode.GOING_AWAY, _STOPS)
        except ConnectionClosed:
            pass
        finally:
            del self._robots[connection]
            self.metrics.clients.set(len(self._robots))

    async def _send(self, connection: ServerConnection, answer: bytes | str) -> None:
        try:
            async with asyncio.timeout(self.limits.patience):
                await connection.send(answer)
        except TimeoutError:  # a robot that reads nothing
            connection.transport.abort()

    async def _answer(self, session: Session, message: str | bytes) -> bytes | str:
        """Return the answer to a message; a text is an error."""
        start = time.perf_counter()
        try:
            if isinstance(message, str):
                raise SpecError("the message is a text frame", help="send msgpack in a binary frame")
            request = read_request(unpack(message))
            return pack(await self._carry_out(session, request, start))
        except SpecError as error:
            self.metrics.answers.labels("refused").inc()
            return str(error)
        except Exception as error:  # the server lives on, and the robot is told
            log.exception("a message could not be answered")
            self.metrics.answers.labels("failed").inc()
            return f"the server failed: {type(error).__name__}: {error}"

    async def _carry_out(self, session: Session, request: Request, start: float) -> dict[str, Any]:
        if request.command == "reset":
            session.reset()
            self.metrics.answers.labels("reset").inc()
            return {"reset": True}
        sample = session.observe(self._translator(request.observation))
        if request.command == "observe" or sample is None:
            self.metrics.answers.labels("observed").inc()
            return {"observed": True}
        running = None
        if request.running is not None:
            assert session.observed is not None
            actions = torch.tensor(request.running, dtype=torch.float32)
            running = prefix_of(self.policy, session.observed, actions, request.delay)
        asked = time.perf_counter()
        chunk = session.take(await self._batcher.predict(sample, request.seed, running))
        predicted = time.perf_counter()
        next_actions = session.act_all()
        actions = chunk if request.command == "chunk" else next_actions
        actions = session.clamped(actions) if request.clamp else actions
        self.metrics.answers.labels("chunk").inc()
        self.metrics.request_seconds.observe(time.perf_counter() - start)
        timing = {"infer_ms": 1e3 * (predicted - asked), "total_ms": 1e3 * (time.perf_counter() - start)}
        return {"actions": actions.float().numpy(), "server_timing": timing}


def _width(policy: BasePolicyModel, robot: str | None) -> int:
    """Return the number of action dimensions of a policy, or of one of its robots."""
    if robot is not None:
        return policy.robots.find(robot).action_dim
    return Spec.from_json(policy.content["specs"]["action"]).width


def _on_signals(loop: asyncio.AbstractEventLoop, stopped: asyncio.Future[int]) -> dict[int, Any]:
    """Resolve `stopped` with the number of the first SIGTERM or SIGINT. Return the former handlers."""

    def stop(number: int) -> None:
        if not stopped.done():
            stopped.set_result(number)

    former: dict[int, Any] = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            handler = signal.getsignal(number)
            loop.add_signal_handler(number, stop, number)
        except (ValueError, RuntimeError, NotImplementedError):  # not the main thread, or Windows
            continue
        former[number] = handler
    return former


__all__ = ["Limits", "PolicyServer"]
