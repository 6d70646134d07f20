"""When a captured step holds for another batch; the rest of it needs a GPU (`test_gpu.py`)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from policysmith.builder.training.step_graph import alike, differs

CAPTURED: dict[str, Any] = {"state": torch.zeros(2, 3), "task.key": ["open", "open"]}


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({"state": torch.ones(2, 3)}, True),
        ({"state": torch.ones(2, 4)}, False),
        ({"state": torch.ones(2, 3).double()}, False),
        ({"state": [1.0]}, False),
        ({"task.key": ["open", "open"]}, True),
        ({"task.key": ["close", "push"]}, False),
        ({"more": torch.zeros(2)}, False),
    ],
    ids=str,
)
def test_tensors_may_have_other_values_and_nothing_else_may(change: dict[str, Any], holds: bool) -> None:
    assert alike(CAPTURED, CAPTURED | change) == holds


def test_a_replay_that_is_not_finite_differs() -> None:
    assert differs(1.0, math.nan)
    assert differs(1.0, math.inf)
    assert differs(1.0, 1.1)
    assert not differs(1.0, 1.001)
    assert not differs(math.nan, math.nan)
