"""Servers in a thread of the test's process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from policysmith.builder import BasePolicyModel, Builder
from policysmith.builder.serving.server import Limits, PolicyServer


@contextmanager
def running(server: PolicyServer) -> Iterator[str]:
    """Yields the address of a server while it runs."""
    addresses: list[str] = []
    started = threading.Event()
    loop = asyncio.new_event_loop()

    def ready(address: str) -> None:
        addresses.append(address)
        started.set()

    task: asyncio.Task[int] = loop.create_task(server.run("127.0.0.1", 0, ready=ready))

    def run() -> None:
        try:
            loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        finally:
            left = asyncio.all_tasks(loop)
            for each in left:
                each.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left))
            loop.close()
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        yield addresses[0]
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


@pytest.fixture(scope="session")
def policy(make_tiny: Callable[[], dict[str, Any]]) -> BasePolicyModel:
    return Builder.from_recipe(make_tiny()).build().eval()


@pytest.fixture
def serving(policy: BasePolicyModel) -> Iterator[Callable[..., str]]:
    """`serving(limits, policy, names=..., source=...)`: the address of a new server."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(limits: Limits | None = None, served: BasePolicyModel = policy, **options: Any) -> str:
            return stack.enter_context(running(PolicyServer(served, limits, **options)))

        yield start
