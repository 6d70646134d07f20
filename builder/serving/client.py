"""A policy on a server, used like a local one.

with connect("ws://gpu-box:8000", token="secret") as policy:
action = policy.select_action(observation)
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_websocket

from ...schemas.errors import ServerError, SpecError
from .protocol import REQUEST, Command, pack, unpack

RETRY = 0.2
"""Time in seconds between two attempts to connect again."""

log = logging.getLogger(__name__)


class RemotePolicy:
    """A policy on a server. `select_action` and `reset` are those of a local one.

    Args:
        url: Address of the server, such as `ws://127.0.0.1:8000`.
        token: Token of the server, if it wants one.
        timeout: Longest wait for a connection or an answer, in seconds.
        patience: Time in seconds to connect again after a loss; with 0, a loss is an error at once.

    Raises:
        ServerError: The server cannot be reached or refuses the connection.
    """

    def __init__(
        self, url: str, *, token: str | None = None, timeout: float = 10.0, patience: float = 0.0
    ) -> None:
        self.url, self.timeout, self.patience = url, timeout, patience
        self._token = token
        self._actions: deque[Tensor] = deque()
        self.reconnections = 0
        """Number of lost connections that were opened again."""
        self._opened = ExitStack()
        self._connection = self._open()

    @property
    def observation_steps(self) -> list[int]:
        """Time steps of the observations that the policy reads, relative to now."""
        return list(self.metadata["observation_steps"])

    def select_action(
        self,
        observation: Mapping[str, Any],
        generator: torch.Generator | None = None,
        *,
        clamp: bool = False,
    ) -> Tensor:
        """Return the next action (A,); see `RobotInterface.select_action`.

        An observation is sent when a chunk is due, or always if the policy reads earlier ones too. The server
        draws from a generator of its own, whose seed is drawn from `generator`.

        Raises:
            SpecError: The policy refuses the observation or its own actions.
            ServerError: The connection is lost, or no answer comes in time.
        """
        if not isinstance(clamp, bool):
            raise TypeError(f"clamp must be True or False, not {clamp!r}")
        if self._actions:
            if len(self.observation_steps) > 1:
                self.remember(observation)
            return self._actions.popleft()
        options: dict[str, Any] = {"clamp": clamp}
        if generator is not None:
            options["seed"] = int(torch.randint(2**63 - 1, (), generator=generator))
        self._actions.extend(self._actions_of(self._ask("act", observation, options)))
        return self._actions.popleft()

    def remember(self, observation: Mapping[str, Any]) -> None:
        """Send an observation that asks for no chunk, for a policy that reads earlier observations."""
        self._ask("observe", observation)

    def chunk(
        self,
        observation: Mapping[str, Any],
        *,
        clamp: bool = False,
        running: Tensor | None = None,
        delay: int = 0,
    ) -> Tensor:
        """Return the whole chunk (H, A) for one time step, which follows those sent before.

        With `running`, the actions (N, A) that would follow, it continues them; the first `delay` will have run.
        """
        options: dict[str, Any] = {"clamp": clamp}
        if running is not None:
            options |= {"running": running.float().cpu().numpy(), "delay": delay}
        return self._actions_of(self._ask("chunk", observation, options))

    def reset(self) -> None:
        """Forget the running chunk and the observation history: a new episode begins."""
        self._actions.clear()
        self._ask("reset", {})

    def close(self) -> None:
        """Close the connection."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> ClientConnection:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else None
        self._opened.close()
        try:
            connection = self._opened.enter_context(
                open_websocket(
                    self.url,
                    compression=None,
                    max_size=None,
                    additional_headers=headers,
                    open_timeout=self.timeout,
                    close_timeout=1,
                )
            )
        except InvalidURI as error:
            raise ServerError(f"{self.url} is not an address of a server; write ws://HOST:PORT") from error
        except InvalidStatus as error:
            said = (error.response.body or b"").decode(errors="replace").strip()
            raise ServerError(
                f"the server {self.url} refuses the connection ({error.response.status_code}): {said[:400]}"
            ) from error
        except (OSError, TimeoutError, InvalidHandshake, EOFError) as error:
            raise ServerError(
                f"the server {self.url} cannot be reached ({error}); start it with `policysmith serve RUN`"
            ) from error
        try:
            self.metadata = unpack(_binary(connection.recv(self.timeout)))
        except (ConnectionClosed, TimeoutError, SpecError) as error:
            self._opened.close()
            raise ServerError(f"the server {self.url} sends no metadata ({error})") from error
        if REQUEST not in self.metadata:
            self._opened.close()
            raise ServerError(
                f"the server {self.url} is not one of `policysmith serve`; drive it with openpi's client"
            )
        return connection

    def _ask(
        self, command: Command, observation: Mapping[str, Any], options: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the answer to a message; after a loss, send it again on a new connection."""
        values = {key: _plain(value) for key, value in observation.items()}
        message = pack({**values, REQUEST: {"command": command, **(options or {})}})
        try:
            answer = self._exchange(message)
        except (ConnectionClosed, OSError) as error:  # TimeoutError is an OSError
            answer = self._again(message, error)
        if isinstance(answer, str):
            raise SpecError(answer)
        return unpack(answer)

    def _exchange(self, message: bytes) -> str | bytes:
        try:
            self._connection.send(message)
            return self._connection.recv(self.timeout)
        except TimeoutError:
            self._connection.close()  # a late answer must not be taken for that to the next message
            raise

    def _again(self, message: bytes, lost: Exception) -> str | bytes:
        deadline = time.monotonic() + self.patience
        problem: Exception = ServerError(
            f"the connection to {self.url} is lost: {lost or type(lost).__name__}"
        )
        while time.monotonic() < deadline:
            try:
                self._connection = self._open()
                self.reconnections += 1
                log.warning("connected to %s again; its history of observations begins anew", self.url)
                return self._exchange(message)
            except (ServerError, ConnectionClosed, OSError) as error:
                problem = error if isinstance(error, ServerError) else problem
                time.sleep(RETRY)
        raise problem from lost

    @staticmethod
    def _actions_of(answer: Mapping[str, Any]) -> Tensor:
        return torch.from_numpy(np.array(answer["actions"]))


def connect(
    url: str, *, token: str | None = None, timeout: float = 10.0, patience: float = 0.0
) -> RemotePolicy:
    """Return the policy on a server; see `RemotePolicy`."""
    return RemotePolicy(url, token=token, timeout=timeout, patience=patience)


def _plain(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def _binary(message: str | bytes) -> bytes:
    if isinstance(message, str):
        raise SpecError(message[:400])
    return message


__all__ = ["RemotePolicy", "connect"]
