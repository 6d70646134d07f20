"""Checkpoints that version 0.1.0 saved: they load, resume and act as they did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from policysmith.builder import Builder
from policysmith.builder.saved_policy import SavedPolicy

CHECKPOINTS = Path(__file__).parents[2] / "fixtures" / "checkpoints"
LOAD = """
    import json, sys
    import torch
    sys.path.insert(0, {folder!r})
    {first}
    from transformers import AutoModel
    import make
    torch.set_num_threads(1)
    print(json.dumps(make.actions(AutoModel.from_pretrained({path!r}, **{options!r}))))
"""


@pytest.fixture(scope="module")
def make() -> Any:
    """The script that saved them."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("make_saved_checkpoints", CHECKPOINTS / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def expected(name: str) -> dict[str, torch.Tensor]:
    held = json.loads((CHECKPOINTS / f"{name}.json").read_text())
    return {key: torch.tensor(actions) for key, actions in held.items()}


def alike(actions: Any, wanted: torch.Tensor) -> bool:
    return torch.allclose(torch.tensor(actions), wanted, rtol=1e-4, atol=1e-5)


def checkpoint(name: str) -> Path:
    return CHECKPOINTS / name / "checkpoints" / "step-00000002"


@pytest.mark.parametrize(
    ("name", "first", "options"),
    [
        ("composed", "", {"trust_remote_code": True}),
        ("composed", "import policysmith.builder", {}),
        ("handwritten", "import reach_policy", {}),
    ],
)
def test_the_auto_classes_load_them(name: str, first: str, options: dict[str, Any], fresh: Any) -> None:
    values = {"folder": str(CHECKPOINTS), "path": str(checkpoint(name)), "first": first, "options": options}
    done = fresh(LOAD.format(**values))
    assert done.returncode == 0, done.stderr
    assert alike(json.loads(done.stdout), expected(name)["saved"])


@pytest.mark.parametrize("name", ["composed", "handwritten"])
def test_they_load_by_their_directory_and_by_their_run(
    name: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CHECKPOINTS.parents[2])
    run = shutil.copytree(CHECKPOINTS / name, tmp_path / "run")
    for path in (checkpoint(name), run):
        saved = SavedPolicy.find(path)
        saved.run_imports(allowed=True)
        assert alike(make.actions(saved.load()), expected(name)["saved"])


@pytest.mark.parametrize("name", ["composed", "handwritten"])
def test_their_runs_go_on(name: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKPOINTS.parents[2])
    shutil.copytree(CHECKPOINTS / name, tmp_path / "run")
    builder = Builder.from_recipe(make.RECIPES[name], allow_imports=True).override({"training.steps": 4})
    result = builder.train(output=tmp_path / "run", resume=True, device="cpu")
    assert (result.steps, result.taken) == (4, 2)
    assert alike(make.actions(result.policy), expected(name)["resumed"])
