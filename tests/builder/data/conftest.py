"""Fixtures of the dataset tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def frame_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test's frame cache to itself."""
    root = tmp_path / "cache"
    monkeypatch.setenv("POLICYSMITH_CACHE", str(root))
    return root
