"""The soak of a server, in seconds instead of minutes."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from policysmith.builder import Builder
from policysmith.builder.serving.server import Limits, PolicyServer

ROOT = Path(__file__).parents[2]


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_valid_request_is_answered_among_bad_clients(make_tiny: Callable[[], dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    policy = Builder.from_recipe(make_tiny()).build().eval()
    server = PolicyServer(policy, Limits(clients=64))
    running = load(ROOT / "tests" / "builder" / "serving" / "conftest.py").running
    with running(server) as address:
        soak = load(ROOT / "benchmarks" / "serving.py").Soak(address, robots=8, rate=10.0)
        found = soak.run(3.0, os.getpid())
    assert found["unanswered"] == []
    assert found["answers"] >= 8
    assert found["misbehaved"] >= 5
    assert server.answers >= found["answers"]
    assert server._robots == {}
    assert found["memory_mb"][1] < found["memory_mb"][0] + 150.0, found
