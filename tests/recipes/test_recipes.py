"""Every recipe in the box is good, says how to run it, and takes a few steps."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from policysmith.builder import Builder
from policysmith.builder.data.record import record

RECIPES = Path(__file__).parents[2] / "recipes"
ALL = sorted(RECIPES.glob("*.yaml"))

VIT_B16 = {"type": "vit", "patch_size": 16, "width": 768, "depth": 12, "heads": 12}
OFFLINE: dict[str, dict[str, Any]] = {"vit_mlp_base": {"policy.backbones.vision": VIT_B16}}
"""Changes for recipes whose weights come from the hub."""


@pytest.fixture(scope="module")
def push(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("data") / "push"
    record("metaworld/push-v3", 2, output, image_size=128)
    return output


@pytest.fixture(params=ALL, ids=lambda path: path.stem)
def builder(request: pytest.FixtureRequest) -> Builder:
    changes = dict(OFFLINE.get(request.param.stem, {}))
    if "push" in request.param.stem:
        changes["data.path"] = str(request.getfixturevalue("push"))
    return Builder.from_recipe(request.param).override(changes)


@pytest.mark.sim
def test_it_wires_and_its_name_is_its_file(builder: Builder) -> None:
    builder.check()
    assert builder.recipe.recipe.name == Path(str(builder.source)).stem
    assert builder.build(device="meta").device.type == "meta"


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_it_opens_with_its_command(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=../schemas/recipe.v1.json"
    header = [line for line in lines if line.startswith("#")]
    assert any(f"build-and-train recipes/{path.name}" in line for line in header)


def test_the_base_model_is_vit_b16(tmp_path: Path) -> None:
    base = Builder.from_recipe(RECIPES / "vit_mlp_base.yaml").override(OFFLINE["vit_mlp_base"])
    assert base.summary is not None
    assert base.summary.parts["backbones.vision"] == pytest.approx(86.4e6, rel=0.01)
    assert base.summary.frozen == {"backbones.vision.model.embeddings.*": 742_656}


def test_its_header_says_how_to_train_the_same_network_from_scratch() -> None:
    text = (RECIPES / "vit_mlp_base.yaml").read_text()
    header = " ".join(
        line.removeprefix("#").strip().rstrip("\\") for line in text.partition("recipe: 1")[0].splitlines()
    )
    words = shlex.split(header[header.rindex("build-and-train") :])
    overrides = [words[index + 1] for index, word in enumerate(words) if word == "-o"]
    builder = Builder(RECIPES / "vit_mlp_base.yaml", (overrides,))
    assert builder.summary is not None
    assert builder.summary.parts["backbones.vision"] == pytest.approx(86.4e6, rel=0.01)
    assert builder.summary.trainable == builder.summary.parameters
    assert builder.recipe.recipe.training.optimizer.groups == []


@pytest.mark.sim
@pytest.mark.parametrize("name", ["vit_mlp", "lite0_mlp", "push_vit_mlp"])
def test_it_takes_steps(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    changes: dict[str, Any] = {"training.steps": 2, "training.batch_size": 4, "training.schedule.warmup": 0}
    if name == "push_vit_mlp":
        changes["data.path"] = str(request.getfixturevalue("push"))
    result = (
        Builder.from_recipe(RECIPES / f"{name}.yaml").override(changes).train(output=tmp_path, device="cpu")
    )
    assert 0.0 < result.loss < 5.0
