"""pi0, pi0.5 and SmolVLA of LeRobot, written and read as directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from policysmith.builder import Builder, RecipePolicy
from policysmith.builder.interop.lerobot.convert import export_policy, import_policy
from policysmith.builder.interop.lerobot.experts import model_of
from policysmith.builder.interop.lerobot.policies import pi0, pi05, smolvla
from policysmith.components.pretrained.models import read_tokenizer
from policysmith.schemas.errors import WeightsError

CAMERA, STATE = "observation.images.corner2", "observation.state"
RESIZE = {"type": "resize_with_pad", "size": 32, "antialias": False}
MODES = {"pi0": "mean_std", "pi05": "quantiles", "smolvla": "mean_std"}
PROMPTS = {
    "pi0": {"max_length": 12, "prompt": "{task}\n"},
    "pi05": {"max_length": 100, "prompt": "Task: {task}, State: {state};\nAction: ", "task_text": "cleaned"},
    "smolvla": {"max_length": 12, "prompt": "{task}\n", "padding": "longest"},
}


def recipe(kind: str, tiny: dict[str, Any], smolvlm: str) -> dict[str, Any]:
    """Return a small policy of this kind, as in a recipe; `smolvlm` is a directory with model config and tokenizer."""
    tokenizer = smolvlm if kind == "smolvla" else "policysmith/tiny"
    vlm: dict[str, Any] = {"type": "vlm", "architecture": "policysmith/tiny-paligemma"}
    backbones: dict[str, Any] = {"vlm": vlm}
    network: dict[str, Any] = {"type": "expert", "width": 24, "hidden": 40, "heads": 2}
    sizes, resize = {"action": 6}, RESIZE
    if kind == "pi05":
        network["time"] = "adarms"
    else:
        sizes["observation.state"] = 7
    if kind == "pi0":
        backbones["proprio"] = {"type": "state"}
    if kind == "smolvla":
        vlm |= {
            "architecture": smolvlm,
            "state": "token",
            "embedding_scale": "sqrt_width",
            "rope": 10_000.0,
        }
        network |= {
            "heads": 3,
            "hidden": 256,
            "family": "llama",
            "action_attention": "causal",
            "joint_every": 2,
        }
        resize = {**RESIZE, "place": "bottom_right"}
    return {
        **tiny,
        "policy": {
            "backbones": backbones,
            "head": {
                "type": "flow_matching",
                "reads": ["vlm.key_values", *(["proprio.tokens"] if kind == "pi0" else [])],
                "network": network,
                "noise_at": 1,
                "padded_dims": "noise",
                "steps": 3,
            },
            "execute": 2,
        },
        "collator": {"type": "language", "tokenizer": tokenizer, "truncate": "end", **PROMPTS[kind]},
        "transforms": [
            resize,
            {"type": "normalize_image", "stats": "half"},
            {"type": "normalize", "mode": MODES[kind]},
            {"type": "pad_dims", "sizes": sizes},
        ],
    }


@dataclass(frozen=True)
class There:
    """A policy of ours and its directory for LeRobot."""

    kind: str
    policy: RecipePolicy
    ours: Path
    theirs: Path
    data: Path


@pytest.fixture(params=["pi0", "pi05", "smolvla"])
def there(
    request: pytest.FixtureRequest,
    make_tiny: Callable[[], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> There:
    monkeypatch.setattr(pi0, "VARIANTS", {16: "gemma_2b", 24: "gemma_300m"})
    monkeypatch.setattr(pi0, "ARCHITECTURE", "policysmith/tiny-paligemma")
    monkeypatch.setattr(pi0, "TOKENIZER", "policysmith/tiny")
    tiny = make_tiny()
    smolvlm = tmp_path / "smolvlm"
    read_tokenizer("policysmith/tiny").save_pretrained(str(smolvlm))
    model_of("policysmith/tiny-smolvlm").sizes.save_pretrained(smolvlm)
    policy = Builder.from_recipe(recipe(request.param, tiny, str(smolvlm))).build()
    assert isinstance(policy, RecipePolicy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    policy.save_pretrained(tmp_path / "ours")
    export_policy(tmp_path / "ours", output=tmp_path / "theirs")
    return There(request.param, policy, tmp_path / "ours", tmp_path / "theirs", Path(tiny["data"]["path"]))


def act(policy: Any, observation: dict[str, Any]) -> torch.Tensor:
    policy.reset()
    torch.manual_seed(3)
    action: torch.Tensor = policy.select_action(observation)
    return action


def test_a_policy_comes_back_as_it_went(there: There, tmp_path: Path, observation: dict[str, Any]) -> None:
    import_policy(there.theirs, data=there.data, output=tmp_path / "back")
    loaded = AutoModel.from_pretrained(tmp_path / "back")
    expected = there.policy.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    state = observation["observation.state"].clone()
    state[3] = 1.0  # as in all of the data; LeRobot cannot know another value for the same
    seen = {**observation, "observation.state": state}
    torch.testing.assert_close(act(loaded, seen), act(there.policy.eval(), seen))
    before, after = (p.content["recipe"] for p in (there.policy, loaded))
    for section in ("head", "execute", "necks"):
        assert before["policy"][section] == after["policy"][section]
    assert before["collator"] == after["collator"]


def test_what_is_written_is_what_lerobot_reads(there: There) -> None:
    config = json.loads((there.theirs / "config.json").read_text())
    size = "resize_imgs_with_padding" if there.kind == "smolvla" else "image_resolution"
    assert config["type"] == there.kind
    assert config[size] == [32, 32]
    assert config["input_features"] == {
        STATE: {"type": "STATE", "shape": [4]},
        CAMERA: {"type": "VISUAL", "shape": [3, 96, 96]},
    }
    mode = "QUANTILES" if there.kind == "pi05" else "MEAN_STD"
    assert config["normalization_mapping"] == {"STATE": mode, "VISUAL": "IDENTITY", "ACTION": mode}
    assert (config["max_action_dim"], config.get("max_state_dim", 7)) == (6, 7)
    steps = json.loads((there.theirs / "policy_preprocessor.json").read_text())["steps"]
    names = [step["registry_name"] for step in steps]
    module = {"pi0": pi0, "pi05": pi05, "smolvla": smolvla}[there.kind]
    assert names[-2:] == list(module.STEPS[:2])  # the state is binned after it is normalized
    assert steps[-1]["config"]["max_length"] == config["tokenizer_max_length"]


@pytest.mark.parametrize("there", ["pi0"], indirect=True)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda recipe: recipe["transforms"].pop(1), r"outside \[-1, 1\]"),
        (
            lambda recipe: recipe["transforms"][1].update(stats="imagenet"),
            "`normalize_image` with `stats: 'imagenet'`",
        ),
        (
            lambda recipe: recipe["transforms"][0].update(antialias=True),
            "`resize_with_pad` with `antialias: True`",
        ),
        (lambda recipe: recipe["collator"].update(prompt="{task}"), "`language` with `prompt: '{task}'`"),
    ],
)
def test_inputs_that_lerobot_would_see_otherwise_are_refused(there: There, change: Any, message: str) -> None:
    content = json.loads(json.dumps(there.policy.content))
    change(content["recipe"])
    with pytest.raises(WeightsError, match=message):
        pi0.processor(content)


@pytest.mark.parametrize("there", ["pi0"], indirect=True)
def test_unknown_steps_and_images_that_are_normalised_before_are_refused(
    there: There, tmp_path: Path
) -> None:
    path = there.theirs / "policy_preprocessor.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, "steps": [*held["steps"], {"registry_name": "other"}]}))
    with pytest.raises(WeightsError, match="`other` has no counterpart"):
        import_policy(there.theirs, data=there.data, output=tmp_path / "back")
    images = [{"type": "normalize_image", "stats": "imagenet"}]
    with pytest.raises(WeightsError, match="normalized before"):
        pi0.transforms({}, images)


@pytest.mark.parametrize(("size", "pixels"), [([64, 32], [32, 64]), (None, None)])
def test_smolvlas_size_is_width_and_height(size: Any, pixels: Any) -> None:
    found = smolvla.transforms({"resize_imgs_with_padding": size}, [])
    assert [raw["size"] for raw in found if raw["type"] == "resize_with_pad"] == ([pixels] if pixels else [])
