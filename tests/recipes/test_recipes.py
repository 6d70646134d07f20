"""Every recipe in the box is good, says how to run it, and takes a few steps."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from ruamel.yaml import YAML
from transformers import AutoModel

from policysmith.builder import Builder
from policysmith.builder.data.writing.record import record

RECIPES = Path(__file__).parents[2] / "recipes"
PAGE = RECIPES.parent / "docs" / "policies.md"
ALL = sorted(path for path in RECIPES.rglob("*.yaml") if "datasets" not in path.parts)
TINY = sorted((RECIPES / "tiny").glob("*.yaml"))
FULL = [RECIPES / path.name for path in TINY]

VIT_B16 = {"type": "vit", "patch_size": 16, "width": 768, "depth": 12, "heads": 12}


def named(path: Path) -> str:
    return str(path.relative_to(RECIPES).with_suffix(""))


def offline(path: Path) -> dict[str, Any]:
    """Return changes that leave out weights and tokenizers of the hub, on which parameters do not depend."""
    content = YAML(typ="safe").load(path)
    changes: dict[str, Any] = {}
    if content.get("collator", {}).get("tokenizer", "").count("/") == 1:
        changes["collator.tokenizer"] = "policysmith/tiny"
    for name, part in content["policy"]["backbones"].items():
        place, weights = f"policy.backbones.{name}", part.get("pretrained", "")
        if part["type"] == "vit" and weights:
            changes[place] = VIT_B16
        elif weights.count("/") == 1:
            changes[f"{place}.pretrained"] = None
            if part["type"] != "timm":
                changes[f"{place}.architecture"] = weights
    return changes


@pytest.fixture(scope="module")
def push(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("data") / "push"
    record("metaworld/push-v3", 2, output, image_size=128)
    return output


@pytest.fixture(scope="module")
def builder_of(request: pytest.FixtureRequest) -> Callable[[Path], Builder]:
    """`builder_of(path)`: the builder of a recipe, which checks it once for all tests."""

    @cache
    def make(path: Path) -> Builder:
        changes = offline(path)
        if "push" in path.stem:
            changes["data.path"] = str(request.getfixturevalue("push"))
        return Builder.from_recipe(path).override(changes)

    return make


@pytest.mark.sim
@pytest.mark.parametrize("path", [path for path in ALL if path not in TINY], ids=named)
def test_it_wires_and_its_name_is_its_file(path: Path, builder_of: Callable[[Path], Builder]) -> None:
    builder = builder_of(path).check()
    name = builder.recipe.sections.name
    assert name == ("pi0_policy" if path.stem == "pi0" else path.stem)  # a name of transformers


def test_it_is_built_on_the_meta_device(builder_of: Callable[[Path], Builder]) -> None:
    assert builder_of(RECIPES / "act.yaml").build(device="meta").device.type == "meta"


@pytest.mark.parametrize("path", ALL, ids=named)
def test_it_opens_with_its_command(path: Path) -> None:
    lines = path.read_text().splitlines()
    up = "../" * len(path.relative_to(RECIPES).parts)
    assert lines[0] == f"# yaml-language-server: $schema={up}schemas/recipe.v1.json"
    header = [line for line in lines if line.startswith("#")]
    assert any(f"build-and-train recipes/{named(path)}.yaml" in line for line in header)
    asked = [line.split()[-1] for line in header if "policysmith evaluate runs/" in line]
    name = YAML(typ="safe").load(path)["name"]
    assert asked in ([], [f"runs/{name}"])


def test_a_full_size_recipe_and_a_tiny_one_are_one_composition() -> None:
    """The same parts in the same places; a tiny recipe only makes them smaller."""

    def parts(path: Path) -> dict[str, Any]:
        policy = YAML(typ="safe").load(path)["policy"]
        head = policy["head"]
        return {
            **{
                place: {name: part["type"] for name, part in policy.get(place, {}).items()}
                for place in ("backbones", "necks")
            },
            "head": {
                "type": head["type"],
                "reads": head["reads"],
                "network": head.get("network", {}).get("type"),
            },
        }

    for tiny, full in zip(TINY, FULL, strict=True):
        assert parts(tiny) == parts(full), full.name


class Count(NamedTuple):
    """Parameters that were published, or that the original has where it is built, and why ours are not those."""

    original: int
    source: str
    differences: Mapping[str, int] = MappingProxyType({})
    apart: str = ""
    """A part of ours that the original does not count."""


_LEROBOT = "LeRobot 0.6.1, built"
_PI_HEADS = {"PaliGemma's language head": -526_647_296, "language head of the expert": -263_323_648}
_ONE_ROBOT = {"layers of their own of 31 robots, of 32": -305_505_248}
COUNTS = {
    "act": Count(
        51_613_582,
        f"{_LEROBOT} for states and actions of 14 values and chunks of 100",
        {"4 values": -20_490, "chunks of 96": -2_048},
    ),
    "bc_transformer": Count(30_167_757, "robomimic 0.3, TransformerGMMActorNetwork, built for this dataset"),
    "diffusion_policy": Count(
        262_709_026, "logs of LeRobot on Push-T, states and actions of 2 values", {"4 values": 121_858}
    ),
    "dit_flow": Count(220_467_972, f"{_LEROBOT}, multi_task_dit, for this dataset"),
    "gr00t_n1": Count(
        2_190_065_904,
        "the paper's 2.2 B, 1.34 B of them the vision-language model, by the config of GR00T-N1-2B",
        _ONE_ROBOT,
    ),
    "gr00t_n1_5": Count(
        2_398_284_528,
        "the config of GR00T-N1.5-3B without a language head of 0.3 B, which its action head does not read",
        _ONE_ROBOT,
    ),
    "octo": Count(
        27_042_060,
        "the paper's 27 M besides T5, by the config of Octo-Small",
        {
            "no wrist camera": -1_500_800,
            "positions of 2 steps, not of 10": -789_504,
            "no goal image": -864,
            "actions of 4 values, not of 7": -6_156,
        },
        apart="backbones.language",
    ),
    "openvla_oft": Count(
        7_652_065_472,
        "logs of OpenVLA's fine-tuning, adapters of rank 32 included",
        {
            "action head and state encoder of OFT": 100_749_316 + 16_801_792,
            "language head, which OFT does not read": -131_334_144,
            "last layers and pooling of both image encoders, which OpenVLA does not read": -43_080_480,
            "adapters of these": -2_859_008,
        },
    ),
    "pi0": Count(4_028_019_472, f"{_LEROBOT}; the paper says 3.3 B", _PI_HEADS),
    "pi05": Count(4_143_404_816, _LEROBOT, _PI_HEADS),
    "pi0_fast": Count(2_923_466_480, "PaliGemma's page on the hub; there are no other parameters"),
    "smolvla": Count(450_046_176, "logs of LeRobot", {"language head of SmolVLM2": -47_308_800}),
    "vqbet": Count(
        37_515_530, f"{_LEROBOT} for Push-T, states and actions of 2 values", {"4 values": 167_754}
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_full_size_recipe_has_the_published_size(name: str, builder_of: Callable[[Path], Builder]) -> None:
    count = COUNTS[name]
    summary = builder_of(RECIPES / f"{name}.yaml").summary
    assert summary is not None
    ours = summary.parameters - summary.parts.get(count.apart, 0)
    assert ours == pytest.approx(count.original + sum(count.differences.values()), rel=0.01)
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| [{name}]"))
    assert row.split("|")[4].split()[:2] == [f"{ours / 1e6:.1f}", "M"]


def test_every_full_size_recipe_is_counted() -> None:
    assert {path.stem for path in FULL} - {"vit_mlp"} == COUNTS.keys()


def test_the_base_model_is_vit_b16(tmp_path: Path) -> None:
    base = Builder.from_recipe(RECIPES / "vit_mlp_base.yaml").override(offline(RECIPES / "vit_mlp_base.yaml"))
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
    assert builder.recipe.sections.training.optimizer.groups == []


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


CUTS = [
    *(pytest.param(path, cut, workers, marks=pytest.mark.slow)
      for path in TINY for cut, workers in ((1, 1), (2, 0), (3, 2))),
    *(pytest.param(RECIPES / "tiny" / f"{name}.yaml", 1, 0)
      for name in ("diffusion_policy", "dit_flow", "gr00t_n1", "smolvla", "vqbet")),
]  # fmt: skip
"""Steps after which a run is resumed, and its loaders. Those that are not slow have silu or mish, or count batches."""


@pytest.mark.parametrize(("path", "cut", "workers"), CUTS)
def test_a_resumed_run_is_the_uninterrupted_run_to_the_bit(
    path: Path, cut: int, workers: int, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"batch_size": 2, "accumulate": 2, "ema": 0.9, "save_every": 1, "keep": 9}
    changes |= {"steps": cut + 1, "workers": workers, "schedule": {"type": "cosine", "warmup": 1}}
    builder = Builder.from_recipe(path).override(
        {f"training.{option}": value for option, value in changes.items()}
    )
    whole = builder.train(output=tmp_path / "whole", device="cpu").checkpoint
    name = f"checkpoints/step-{cut:08d}"
    shutil.copytree(tmp_path / "whole" / name, tmp_path / "cut" / name)
    resumed = builder.train(output=tmp_path / "cut", device="cpu", resume=True)
    assert (resumed.taken, resumed.checkpoint.name) == (1, whole.name)
    ours, theirs = ((path / "model.safetensors").read_bytes() for path in (resumed.checkpoint, whole))
    assert ours == theirs
    states = [torch.load(path / "training.pt", weights_only=True) for path in (resumed.checkpoint, whole)]
    held = [(state["optimizer"]["state"], state["average"], state["weights"]) for state in states]
    torch.testing.assert_close(*held, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("path", TINY, ids=named)
def test_a_tiny_one_trains_is_saved_and_acts(path: Path, tmp_path: Path) -> None:
    changes = {"training.steps": 2, "training.batch_size": 4, "training.schedule.warmup": 0}
    builder = Builder.from_recipe(path).override(changes)
    assert builder.recipe.sections.name == f"{path.stem}_tiny"
    result = builder.train(output=tmp_path, device="cpu")
    assert 0.0 < result.loss < 100.0
    policy = AutoModel.from_pretrained(tmp_path / "policy").eval()
    chunks: list[torch.Tensor] = []
    inference = policy.inference
    policy.inference = lambda *args, **kwargs: chunks.append(inference(*args, **kwargs)) or chunks[-1]
    observation = {
        "observation.images.corner2": torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8),
        "observation.state": torch.zeros(4),
        "task": "open the drawer",
    }
    action = policy.select_action(observation, generator=torch.Generator().manual_seed(0))
    assert action.shape == (4,)
    (chunk,) = chunks
    assert chunk.shape == (1, builder.recipe.sections.data.horizon, 4)
    assert chunk.isfinite().all()
