"""The names that `policysmith.components` exports, and the part that its page shows."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from policysmith import components
from policysmith.components import HEADS
from policysmith.schemas.errors import SpecError

PAGE = Path(__file__).parents[2] / "docs" / "parts.md"


def test_the_page_lists_what_is_exported() -> None:
    section = PAGE.read_text().partition("exports\n")[2]
    listed = re.findall(r"`(\w+)`", section)
    assert sorted(listed) == sorted(components.__all__)
    for name in components.__all__:
        assert getattr(components, name) is not None
    with pytest.raises(AttributeError, match="no attribute `Backbones`"):
        _ = components.Backbones


def test_an_import_of_the_package_imports_no_torch() -> None:
    code = "import sys, policysmith.components as c; from policysmith.components import Kind; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_the_head_of_the_page_works(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "linear_head.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("linear_head")
    part: Any = HEADS.get("linear")
    inputs = {key: spec for key, spec in world.feature_specs.items() if key != "vision.tokens"}
    config, batch = part.example(), world.batch()
    head = part(config, inputs, {})
    assert part.specs(config, inputs, {}) == {"action": inputs["action"]}
    assert head.loss(world.features(), batch["action"], world.is_pad(batch))["loss"].isfinite()
    assert head.sample(world.features()).shape == batch["action"].shape
    assert torch.equal(
        head.counts(batch["action"], world.is_pad(batch))["values"], (~world.is_pad(batch)).sum()
    )
    with pytest.raises(SpecError, match="must be positive"):
        part.specs(config.model_copy(update={"bound": 0.0}), inputs, {})
