"""The part that a contract test is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .built import Built


@pytest.fixture
def built(request: pytest.FixtureRequest, world: Any, tmp_path: Path) -> Built:
    kind, name = request.param
    return Built(kind, name, world, tmp_path)
