"""The part that a contract test is about."""

from __future__ import annotations

from typing import Any

import pytest

from .built import Built


@pytest.fixture
def built(request: pytest.FixtureRequest, world: Any) -> Built:
    kind, name = request.param
    return Built(kind, name, world)
