"""Devices on which operators are put into traced graphs."""

from __future__ import annotations

import pytest

from policysmith.builder.training.speed.fx import passes
from policysmith.components.kernels import attention


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put operators in on a CPU too, where they run as plain torch."""
    for module in (passes, attention):
        monkeypatch.setattr(module, "uses_kernel", lambda values: True)
    return str(request.param)
