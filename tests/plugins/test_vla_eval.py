"""The adapter for vla-eval, whose modules are stand-ins here: observations arrive under the policy's keys."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
NAMES = {
    "vla_eval": (),
    "vla_eval.model_servers": (),
    "vla_eval.model_servers.base": ("SessionContext",),
    "vla_eval.model_servers.predict": ("PredictModelServer",),
    "vla_eval.model_servers.serve": ("run_server",),
    "vla_eval.specs": ("IMAGE_RGB", "LANGUAGE", "RAW", "DimSpec"),
    "vla_eval.types": ("Action", "Observation"),
}
FRONT, WRIST = (np.full((2, 2, 3), value, np.uint8) for value in (1, 2))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An adapter for a policy with two cameras and a state, without a connection."""
    for name, members in NAMES.items():
        module = ModuleType(name)
        for member in members:
            setattr(module, member, type(member, (), {}))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(ROOT / "plugins")
    monkeypatch.delitem(sys.modules, "vla_eval_policysmith", raising=False)
    import vla_eval_policysmith

    monkeypatch.delitem(sys.modules, "vla_eval_policysmith")
    made: Any = object.__new__(vla_eval_policysmith.PolicysmithModelServer)
    made._cameras = ["observation.images.front", "observation.images.wrist"]
    made._reads = {**dict.fromkeys(made._cameras, "image"), "observation.state": "state"}
    made._images, made._state = None, "observation.state"
    return made


def observation(**changes: Any) -> dict[str, Any]:
    return {"images": {"a": FRONT, "b": WRIST}, "states": [1.0, 2.0], "task_description": "push", **changes}


def test_an_observation_arrives_under_the_keys_of_the_policy(server: Any) -> None:
    found = server._translated(observation())
    assert found["observation.images.front"] is FRONT
    assert found["observation.images.wrist"] is WRIST
    assert (found["observation.state"].tolist(), found["task"]) == ([1.0, 2.0], "push")
    server._images = {"b": "observation.images.front"}
    assert server._translated(observation())["observation.images.front"] is WRIST


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": {"a": FRONT}}, "the benchmark has the cameras a, and the policy reads"),
        ({"images": {"a": FRONT, "b": WRIST, "c": WRIST}}, "name those to use with `--args.images`"),
        ({"states": None}, "the benchmark sends no state"),
    ],
)
def test_inputs_that_do_not_match_are_refused(changes: dict[str, Any], said: str, server: Any) -> None:
    with pytest.raises(ValueError, match=said):
        server._translated(observation(**changes))


def test_a_camera_that_a_benchmark_lacks_is_named(server: Any) -> None:
    server._images = {"top": "observation.images.front"}
    with pytest.raises(ValueError, match="no camera top; it has a, b"):
        server._translated(observation())
