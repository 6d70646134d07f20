"""Diffusion Policy written as a directory of LeRobot, and read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from policysmith.builder import Builder
from policysmith.builder.interop.lerobot.convert import export_policy, import_policy

POLICY = {
    "backbones": {
        "vision": {"type": "timm", "name": "resnet18", "norm": "group"},
        "proprio": {"type": "state", "reads": ["observation.state"]},
    },
    "necks": {"keypoints": {"type": "spatial_softmax", "reads": ["vision"], "keypoints": 4, "width": 8}},
    "head": {
        "type": "diffusion",
        "reads": ["keypoints", "proprio.pooled"],
        "network": {"type": "unet", "widths": [8, 16], "time_width": 8},
        "train_steps": 10,
        "sampler": "ddim",
        "steps": 3,
    },
    "execute": 2,
}
TRANSFORMS = [
    {"type": "crop", "size": [64, 80]},
    {"type": "normalize_image"},
    {"type": "normalize", "mode": "min_max"},
]


def test_a_policy_comes_back_as_it_went(
    make_tiny: Callable[[], dict[str, Any]], observation: dict[str, Any], tmp_path: Path
) -> None:
    tiny = make_tiny()
    data = {**tiny["data"], "horizon": 4, "observation_steps": 2, "past_actions": 1}
    policy = Builder.from_recipe({**tiny, "data": data, "policy": POLICY, "transforms": TRANSFORMS}).build()
    policy.save_pretrained(tmp_path / "ours")
    config = export_policy(tmp_path / "ours", output=tmp_path / "theirs")
    assert config == json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config["crop_shape"] == [64, 80]
    assert config["clip_sample_range"] == pytest.approx(1.0)
    assert config["normalization_mapping"] == {
        "STATE": "MIN_MAX",
        "VISUAL": "MEAN_STD",
        "ACTION": "MIN_MAX",
    }
    back = import_policy(tmp_path / "theirs", data=tiny["data"]["path"], output=tmp_path / "back").eval()
    first, second = (
        one.select_action(observation, torch.Generator().manual_seed(0)) for one in (policy, back)
    )
    torch.testing.assert_close(first, second)
    assert back.present == 1
