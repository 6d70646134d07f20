"""A light environment and a policy for it, saved like any other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policysmith.builder.policy.registration.registry import policies
from policysmith.builder.policy.sample_pipeline import KEY
from policysmith.builder.recipe.imports import run_imports
from policysmith.schemas.yaml.document import from_mapping

SCRIPTED = Path(__file__).with_name("scripted.py")
ROOT = str(Path(__file__).parents[3])

SavePolicy = Callable[..., Path]


@pytest.fixture(autouse=True)
def importable_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let spawned processes find the test modules by the path of this one."""
    monkeypatch.setattr(sys, "path", [*sys.path, ROOT])


def content(*, side: int | None = 16, execute: int | None = None, imports: bool = True) -> dict[str, Any]:
    """Return the content of a scripted policy's config."""
    specs: dict[str, Any] = {
        "observation.state": {"kind": "state", "dims": ["B", 1, 4]},
        "task": {"kind": "text", "dims": ["B"]},
        "action": {"kind": "action", "dims": ["B", 4, 2]},
    }
    if side is not None:
        specs["observation.images.top"] = {"kind": "image", "dims": ["B", 1, 3, side, side]}
    recipe = {
        "name": "reacher",
        "imports": [str(SCRIPTED)] if imports else [],
        "data": {"path": "nowhere", "validation": 0.0, "split_seed": 0},
        "policy": {"type": "scripted", "execute": execute},
        "transforms": [],
        "training": {"seed": 0},
        "evaluation": None,
    }
    return {"recipe": recipe, "specs": specs, "statistics": {}, "provenance": {}}


@pytest.fixture
def make_policy() -> Callable[..., Any]:
    """Factory of scripted policies: `make_policy(behavior, noise=0.0, **content)`."""
    run_imports(from_mapping({"imports": [str(SCRIPTED)]}))

    def make(behavior: str, noise: float = 0.0, **options: Any) -> Any:
        policy: Any = policies()["scripted"]
        config = policy.config_class(behavior=behavior, noise=noise)
        setattr(config, KEY, content(**options))
        return policy(config).eval()

    return make


@pytest.fixture
def save_policy(make_policy: Callable[..., Any], tmp_path: Path) -> SavePolicy:
    """Factory of saved scripted policies, which returns their directories."""

    def save(behavior: str, **options: Any) -> Path:
        directory = tmp_path / f"policy-{behavior}-{len(list(tmp_path.iterdir()))}"
        make_policy(behavior, **options).save_pretrained(directory)
        return directory

    return save
