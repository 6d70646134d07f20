"""A checkpoint in a process that knows nothing: with the package imported, with trust, with neither."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from policysmith.builder import Builder

LOAD = """
    import json, sys
    {first}
    import torch
    from transformers import AutoModel
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # uninitialised memory is NaN
    root, options = sys.argv[1], json.loads(sys.argv[2])
    batch = torch.load(root + "/batch.pt")

    def act(name):
        policy = AutoModel.from_pretrained(root + "/" + name, **options)
        return policy, policy.inference(batch, generator=torch.Generator().manual_seed(3))

    found = {{}}
    for name in sys.argv[3:]:
        policy, actions = act(name)
        batch_of_one = policy.collator([{{"task": "open the drawer"}}])
        found[name] = {{
            "actions": actions,
            "buffers": dict(policy.named_buffers()),
            "ids": batch_of_one.get("task.input_ids"),
            "class": type(policy).__qualname__,
        }}
        if name == "talking":
            policy.save_pretrained(root + "/" + name)  # over itself
            assert torch.equal(act(name)[1], actions)
    torch.save(found, root + "/found.pt")
"""


@pytest.fixture(scope="module")
def saved(
    tmp_path_factory: pytest.TempPathFactory,
    batch: Callable[..., dict[str, Any]],
    make_tiny: Callable[[], dict[str, Any]],
    saved_text_encoder: Callable[[Path], dict[str, Any]],
    saved_tokenizer: Callable[[Path], dict[str, Any]],
) -> Path:
    """Policies of several kinds, and what they do here. The tokenizer that one was made with is gone."""
    root = tmp_path_factory.mktemp("policies")
    torch.save(batch(), root / "batch.pt")
    expected = {}
    for name, changes in _kinds(root / "sources", saved_text_encoder, saved_tokenizer).items():
        policy = Builder.from_recipe(make_tiny() | {"name": name}).override(changes).build()
        with torch.no_grad():  # as training does: heads and adapters that start at zero act
            for parameter in policy.parameters():
                parameter += 0.02 * torch.randn(parameter.shape)
        policy.save_pretrained(root / name)
        expected[name] = {
            "actions": policy.inference(batch(), generator=torch.Generator().manual_seed(3)),
            "buffers": dict(policy.named_buffers()),
        }
    shutil.rmtree(root / "sources")
    torch.save(expected, root / "expected.pt")
    return root


def _kinds(sources: Path, text_encoder: Any, tokenizer: Any) -> dict[str, dict[str, Any]]:
    """By name, what differs from the tiny recipe."""
    text, collator = text_encoder(sources), tokenizer(sources)
    vision = "policy.backbones.vision"

    def timm(name: str, size: int) -> dict[str, Any]:
        return {vision: {"type": "timm", "name": name}, "transforms.1.size": size}

    sizes = DINOv3ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=16)
    DINOv3ViTModel(sizes).save_pretrained(sources / "dinov3")
    adapters = {"rank": 2, "targets": ["*.q_proj", "*.v_proj"]}
    return {
        "plain": {},
        "adapted": {f"{vision}.lora": adapters},
        "encoder": {vision: {"type": "vision", "pretrained": str(sources / "dinov3"), "lora": {"rank": 2}}},
        "flow": {
            "policy.head": {
                "type": "flow_matching",
                "network": {"type": "dit", "width": 16, "depth": 1, "heads": 2},
                "steps": 2,
            }
        },
        "talking": {"policy.backbones.text": text, "collator": collator},
        "swin_like": timm("swin_tiny_patch4_window7_224", 56),
        "eva_like": timm("eva02_tiny_patch14_224", 28),
        "dino_like": timm("vit_small_patch16_dinov3", 32),
    }


@pytest.mark.parametrize(
    ("first", "options", "names"),
    [
        (
            "import policysmith.builder",
            {},
            ["plain", "adapted", "encoder", "flow", "talking", "swin_like", "eva_like", "dino_like"],
        ),
        ("", {"trust_remote_code": True}, ["plain", "adapted", "talking", "eva_like"]),
    ],
    ids=["imported", "trusted"],
)
def test_actions_are_the_same_to_the_bit(
    first: str, options: dict[str, Any], names: list[str], saved: Path, fresh: Callable[..., Any]
) -> None:
    expected = torch.load(saved / "expected.pt")
    done = fresh(LOAD.format(first=first), saved, json.dumps(options), *names)
    assert done.returncode == 0, done.stderr
    found = torch.load(saved / "found.pt")
    for name in names:
        wanted = expected[name]
        assert found[name]["class"] == "RecipePolicy"
        assert torch.equal(found[name]["actions"], wanted["actions"]), name
        assert found[name]["buffers"].keys() == wanted["buffers"].keys()
        assert all(
            torch.equal(value, wanted["buffers"][key]) for key, value in found[name]["buffers"].items()
        )
    assert found["talking"]["ids"][0, :3].tolist() == [2, 4, 5]


def test_without_import_and_trust_the_error_is_clear_and_nothing_waits(
    saved: Path, fresh: Callable[..., Any]
) -> None:
    begin = time.monotonic()
    code = """
        import sys
        from transformers import AutoModel
        AutoModel.from_pretrained(sys.argv[1])
    """
    done = fresh(code, saved / "plain", timeout=100)
    assert done.returncode != 0
    assert "\nValueError: " in done.stderr
    assert "trust_remote_code=True" in done.stderr
    assert time.monotonic() - begin < 60
