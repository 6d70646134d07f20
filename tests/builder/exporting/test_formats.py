"""Policies as files: every recipe is exported and acts like its policy, or is refused for a stated reason."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from policysmith.builder import Builder, RecipePolicy
from policysmith.builder.exporting import formats
from policysmith.builder.exporting.export import export
from policysmith.builder.inference.example import example_samples
from policysmith.components.registry import HEADS
from policysmith.schemas.console import policysmith
from policysmith.schemas.errors import CheckpointError, SpecError

RECIPES = sorted((Path(__file__).resolve().parents[3] / "recipes" / "tiny").glob("*.yaml"))
REFUSED = {"pi0_fast": "`head` (fast) cannot be written to a file: what it does next depends on values"}
"""Recipes that no format can hold, with the reason as docs/export.md states it."""
IN_ONNX = ("diffusion_policy",)
"""Recipes that are always tested as ONNX; the page on export is tested with another."""
SLOW = (
    "act",
    "bc_transformer",
    "gr00t_n1",
    "gr00t_n1_5",
    "octo",
    "openvla_oft",
    "pi0",
    "pi05",
    "smolvla",
    "vit_mlp",
)
"""Recipes left to the slow tests, which take all in both forms; new ones are always tested as programs of torch."""


def saved(recipe: Path, directory: Path) -> RecipePolicy:
    """Save a policy of one or two steps, away from its initial weights, under which some heads would do nothing."""
    torch.manual_seed(0)
    builder = Builder.from_recipe(recipe)
    if "steps" in builder.recipe.resolved()["policy"]["head"]:
        steps = 2 if recipe.stem == "octo" else 1  # it draws noise in every step
        builder = builder.override(f"policy.head.steps={steps}")
    policy = builder.build().eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
    policy.save_pretrained(directory)
    assert isinstance(policy, RecipePolicy)
    return policy


def run_torch(path: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    actions: torch.Tensor = torch.export.load(path / "policy.pt2").module()(inputs)
    return actions


def run_onnx(path: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path / "policy.onnx", providers=["CPUExecutionProvider"])
    assert {each.name for each in session.get_inputs()} <= set(inputs)
    wanted = {each.name: inputs[each.name].numpy() for each in session.get_inputs()}
    return torch.from_numpy(session.run(None, wanted)[0])


def assert_acts_alike(
    policy: RecipePolicy, path: Path, run: Callable[[Path, dict[str, torch.Tensor]], torch.Tensor]
) -> None:
    """Compare a file with its policy by the description of the file alone, in a batch of another size."""
    described = json.loads((path / "policy.json").read_text())
    samples = example_samples(policy, 2, seed=7)
    batch = policy.collator(samples)
    noise = torch.Generator().manual_seed(1)
    inputs = {}
    for key, entry in described["inputs"].items():
        first, *shape = entry["shape"]
        assert first == "batch"
        if (kind := described["noise"].get(key)) is not None:
            draw = torch.randn if kind == "normal" else torch.rand
            inputs[key] = draw(2, *shape, generator=noise)
            continue
        inputs[key] = batch[key]
        if key.startswith("task."):  # the policy itself may read prompts as short as they are
            spare = shape[0] - batch[key].shape[1]
            left = policy.collator.config.padding_side == "left"
            inputs[key] = torch.nn.functional.pad(batch[key], (spare, 0) if left else (0, spare))
        assert list(inputs[key].shape[1:]) == shape
        assert str(batch[key].dtype) == f"torch.{entry['dtype']}"
    found = run(path, inputs)
    numbers = {key: value.clone() for key, value in inputs.items() if key in described["noise"]}
    with pytest.MonkeyPatch.context() as patch:
        for name, key in (("randn", "noise"), ("rand", "uniform")):

            def given(shape: Any, *_: Any, key: str = key, **__: Any) -> torch.Tensor:
                count = shape[0] // 2
                drawn, numbers[key] = numbers[key][:, :count], numbers[key][:, count:]
                return drawn.flatten(0, 1)

            if key in numbers:
                patch.setattr(torch, name, given)
        expected = policy.predict(samples)
    assert all(not rest.shape[1] for rest in numbers.values()), "some noise was left"
    assert list(expected.shape[1:]) == described["outputs"]["action"]["shape"][1:]
    std = torch.tensor(policy.content["statistics"]["action"]["std"])
    assert ((found - expected).abs() / std)[..., std > 1e-6].max() <= 1e-3


def cases(form: str) -> list[Any]:
    """Recipes for a format; those that are slow, or tested in the other, are left to the slow tests."""
    left = {
        "onnx": [path.stem for path in RECIPES if path.stem not in IN_ONNX],
        "torch-export": [*IN_ONNX, *SLOW],
    }
    slow = dict.fromkeys(left[form], pytest.mark.slow)
    return [pytest.param(path, id=path.stem, marks=slow.get(path.stem, ())) for path in RECIPES]


@pytest.mark.parametrize("recipe", cases("torch-export"))
def test_a_program_of_torch_acts_like_its_policy_or_is_refused(recipe: Path, tmp_path: Path) -> None:
    policy = saved(recipe, tmp_path / "policy")
    if recipe.stem in REFUSED:
        with pytest.raises(SpecError) as refused:
            export(tmp_path / "policy", tmp_path / "file", format="torch-export")
        assert REFUSED[recipe.stem] in str(refused.value)
        assert not (tmp_path / "file").exists()
        return
    export(tmp_path / "policy", tmp_path / "file", format="torch-export")
    assert_acts_alike(policy, tmp_path / "file", run_torch)


@pytest.mark.parametrize("recipe", [case for case in cases("onnx") if case.id not in REFUSED])
def test_onnxruntime_acts_like_the_policy(recipe: Path, tmp_path: Path) -> None:
    policy = saved(recipe, tmp_path / "policy")
    export(tmp_path / "policy", tmp_path / "file", format="onnx")
    assert_acts_alike(policy, tmp_path / "file", run_onnx)


@pytest.fixture
def small(tiny: dict[str, Any], tmp_path: Path) -> Path:
    """A saved policy that is traced in a second."""
    torch.manual_seed(0)
    Builder.from_recipe(tiny).build().save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def test_the_command_describes_what_it_wrote(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "file"
    assert policysmith(["export", str(small), "--output", str(output), "--format", "torch-export"]) == 0
    assert "torch.export.load" in capsys.readouterr().out
    described = json.loads((output / "policy.json").read_text())
    assert described["inputs"]["observation.state"] == {
        "shape": ["batch", 1, 4],
        "dtype": "float32",
        "names": ["hand_x", "hand_y", "hand_z", "gripper_opening"],
    }
    assert described["outputs"]["action"]["shape"] == ["batch", 4, 4]
    assert (described["execute"], described["fps"], described["observation_steps"]) == (2, 80, [0])
    weights = (small / "model.safetensors").read_bytes()
    assert described["checkpoint"] == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    assert described["sha256"] == hashlib.sha256((output / "policy.pt2").read_bytes()).hexdigest()


def test_a_file_that_disagrees_is_not_left_behind(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = formats.FORMATS["torch-export"]
    wrong = dataclasses.replace(form, open=lambda path: lambda inputs: 0.999 * form.open(path)(inputs) + 0.01)
    monkeypatch.setitem(formats.FORMATS, "torch-export", wrong)
    with pytest.raises(SpecError, match="the file returns other actions than the policy"):
        export(small, tmp_path / "file", format="torch-export")
    assert not (tmp_path / "file").exists()


def test_a_part_that_fixes_the_batch_size_yields_a_file_for_one(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    head = HEADS.get("mlp")
    sample = head.sample

    def sampled(self: Any, features: Any, *rest: Any) -> torch.Tensor:
        count = len(next(iter(features.values())).values)
        chunk: torch.Tensor = sample(self, features, *rest) * torch.ones(count, 1, 1)
        return chunk

    monkeypatch.setattr(head, "sample", sampled)
    export(small, tmp_path / "file", format="torch-export")
    assert "for one robot at a time" in caplog.text
    described = json.loads((tmp_path / "file" / "policy.json").read_text())
    assert described["outputs"]["action"]["shape"] == [1, 4, 4]


def test_an_operator_that_onnx_lacks_is_named_with_its_part(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = HEADS.get("mlp")
    sample = head.sample
    monkeypatch.setattr(head, "sample", lambda self, *given: sample(self, *given).cummax(dim=1).values)
    with pytest.raises(
        SpecError, match=r"ONNX has no counterpart of the operator `aten.cummax.*use `--format torch-export`"
    ):
        export(small, tmp_path / "file", format="onnx")
    assert not (tmp_path / "file").exists()


def test_a_package_that_is_not_installed_is_named(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r'pip install "policysmith\[export\]"'):
        export(small, tmp_path / "file", format="onnx")


def test_a_full_directory_is_refused(small: Path, tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "notes.txt").touch()
    with pytest.raises(CheckpointError, match="is not empty"):
        export(small, tmp_path / "file", format="torch-export")
