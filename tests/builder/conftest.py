"""Policies of every kind, batches for them, and processes that start from nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from policysmith.schemas.diagnostics import Diagnostic
from policysmith.schemas.errors import RecipeError

CAMERA = "observation.images.corner2"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Sums of floats depend on the number of threads, and tests compare to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def batch() -> Callable[..., dict[str, Any]]:
    """`batch(size, horizon)`: what the default collator makes of demonstrations, with random values."""

    def make(size: int = 2, horizon: int = 4, seed: int = 0) -> dict[str, Any]:
        random = torch.Generator().manual_seed(seed)
        return {
            CAMERA: torch.randint(0, 256, (size, 1, 3, 96, 96), dtype=torch.uint8, generator=random),
            "observation.state": torch.rand(size, 1, 4, generator=random),
            "task": ["open the drawer"] * size,
            "task.input_ids": torch.randint(0, 7, (size, 16), generator=random),
            "task.attention_mask": (torch.arange(16) < 3).long().repeat(size, 1),
            "action": torch.rand(size, horizon, 4, generator=random) * 2 - 1,
            "action_is_pad": torch.zeros(size, horizon, dtype=torch.bool),
        }

    return make


@pytest.fixture(scope="session")
def observation() -> dict[str, Any]:
    """One time step, as a robot gives it."""
    random = torch.Generator().manual_seed(5)
    return {
        CAMERA: torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8, generator=random),
        "observation.state": torch.rand(4, generator=random),
        "task": "open the drawer",
    }


@pytest.fixture(scope="session")
def fresh() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`fresh(code, *arguments)`: run Python code in a process of its own, offline, with stdin closed."""

    def run(code: str, *arguments: Any, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            check=False,
        )

    return run


@pytest.fixture
def forked(command: Callable[..., Any], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`forked(code, *arguments)`: run Python code in a process that has imported policysmith, and nothing else."""

    def run(code: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = command(
            ["python", "-c", textwrap.dedent(code), *arguments], tmp_path
        )
        return done

    return run


@pytest.fixture(scope="session")
def refused() -> Callable[[Callable[[], Any]], tuple[Diagnostic, ...]]:
    """`refused(action)`: the diagnostics of the RecipeError that an action raises."""

    def run(action: Callable[[], Any]) -> tuple[Diagnostic, ...]:
        with pytest.raises(RecipeError) as caught:
            action()
        return caught.value.diagnostics

    return run


@pytest.fixture
def to_yaml(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """`to_yaml(recipe)`: the recipe as a file, so that diagnostics have lines; JSON is YAML."""

    def write(recipe: dict[str, Any]) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(recipe, indent=2))
        return path

    return write
