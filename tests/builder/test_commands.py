"""`graph`, `summary`, `runs`, `doctor` and `reproduce`."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from policysmith.builder import Builder
from policysmith.builder.planning.graph import graph, mermaid, svg
from policysmith.builder.planning.memory import changes, held_bytes
from policysmith.schemas import console
from policysmith.schemas.questions.difference import differences, side

RECIPES = Path(__file__).parents[2] / "recipes"
TINY = sorted((RECIPES / "tiny").glob("*.yaml"))


@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
def test_the_graph_has_every_part_and_edge(path: Path) -> None:
    builder = Builder.from_recipe(path).check()
    assert builder.plan is not None
    assert builder.summary is not None
    drawn = graph(builder.plan, builder.summary)
    names = {box.name for box in drawn.boxes}
    assert {*builder.summary.parts, "data", "action"} <= names
    assert {name for edge in drawn.edges for name in edge[:2]} == names
    columns = {box.name: box.column for box in drawn.boxes}
    assert all(columns[source] < columns[target] for source, target, _ in drawn.edges)
    shapes = ElementTree.fromstring(svg(drawn))
    assert len(shapes.findall("{*}rect")) == len(drawn.boxes)
    text = mermaid(drawn)
    assert text.count("-->") == len(drawn.edges)
    assert len(re.findall(r'^  n\d+\["', text, re.MULTILINE)) == len(drawn.boxes)


def test_memory_by_part_adds_up(tiny: dict[str, Any]) -> None:
    builder = Builder.from_recipe(tiny).check()
    assert builder.summary is not None
    held = held_bytes(builder.recipe, builder.summary)
    assert sum(held.values()) == pytest.approx(builder.summary.training_bytes, abs=len(held))


@pytest.mark.parametrize("change", ["training.optimizer.states=8bit", "training.ema=null"])
def test_a_change_saves_what_it_promises(change: str, tiny: dict[str, Any]) -> None:
    builder = Builder.from_recipe(tiny).override({"training.ema": 0.9, "policy.backbones.vision.width": 512})

    def total(built: Builder) -> int:
        assert built.summary is not None
        return sum(held_bytes(built.recipe, built.summary).values())

    assert builder.summary is not None
    (promised,) = (each for each in changes(builder.recipe, builder.summary) if each.override == change)
    assert total(builder) - total(builder.override(change)) == pytest.approx(promised.saves, rel=0.02)


def test_operations_are_those_that_training_counts(tiny: dict[str, Any], tmp_path: Path) -> None:
    builder = Builder.from_recipe(tiny).override({"training.steps": 1})
    builder.train(output=tmp_path, device="cpu")
    (counted,) = re.findall(r"([\d.e-]+) GFLOP a sample", (tmp_path / "log.jsonl").read_text())
    assert builder.operations is not None
    assert builder.operations / 1e9 == pytest.approx(float(counted), rel=0.05)


def test_a_policy_that_does_not_fit_is_told_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["summary", str(RECIPES / "vit_mlp.yaml"), "--gpu"]
    assert console.policysmith([*words, "24GB"]) == console.OK
    assert "fits into the 24.0 GiB of the GPU" in capsys.readouterr().out
    assert console.policysmith([*words, "0.03"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"-o 'training.optimizer.states=8bit'  leaves [\d.]+ GiB", said)
    assert "training.sharding=full" in said
    with pytest.raises(SystemExit):
        console.policysmith([*words, "plenty"])


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, make_tiny: Callable[[], dict[str, Any]]) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    recipe = make_tiny() | {"name": "one"}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    for words in (["init", "--quiet"], ["add", "recipe.yaml"], ["commit", "--quiet", "--message", "start"]):
        git(folder, *words)
    Builder.from_recipe(path).override({"training.steps": 2}).train(output=folder / "one", device="cpu")
    return folder


def test_a_run_is_reproduced_to_the_last_bit(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", str(trained / "one"), "--device", "cpu"]
    assert console.policysmith([*words, "--output", str(trained / "two")]) == console.OK
    captured = capsys.readouterr()
    assert "reproduced: all weights" in captured.out
    assert captured.err == ""
    (trained / "recipe.yaml").write_text("{}")
    recipe = trained / "one" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace('"steps": 2', '"steps": 2, "seed": 7'))
    assert console.policysmith([*words, "--output", str(trained / "three")]) == 1
    captured = capsys.readouterr()
    assert "tensors differ, by" in captured.out
    assert "recipe.yaml was changed after the run" in captured.err
    commit = git(trained, "rev-parse", "HEAD")[:12]
    assert f"the code was at commit {commit} and is at {commit} with changes" in captured.err
    git(trained, "checkout", "recipe.yaml")


def test_a_run_and_its_checkpoints_hold_their_provenance(trained: Path) -> None:
    run = trained / "one"
    held = json.loads((run / "policy" / "config.json").read_text())["provenance"]
    described = json.loads((run / "run.json").read_text())
    assert {key: described[key] for key in held} == held
    assert held["git"] == {"commit": git(trained, "rev-parse", "HEAD"), "dirty": False}
    assert held["origins"]["name"] == "recipe.yaml:1:23"
    assert held["origins"]["training.steps"] == "<override>: training.steps"
    lock = (run / "policy" / "recipe.lock.yaml").read_text().splitlines()
    assert "  seed: 0 # default" in lock
    assert "name: one # recipe.yaml:1:23" in lock
    found = [str(each) for each in differences(side(run), side(trained / "recipe.yaml"))]
    place = f"{run / 'policy'}: <override>: training.steps -> {trained / 'recipe.yaml'}:1:"
    assert any(each.startswith(f"training.steps: 2 -> 4  ({place}") for each in found)


def test_runs_are_listed_with_the_options_that_differ(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Builder.from_recipe(trained / "recipe.yaml").override({"training.steps": 1})
    other.override({"training.optimizer.lr": 0.5}).train(output=trained / "fast", device="cpu")
    assert console.policysmith(["runs", str(trained / "fast"), str(trained / "one")]) == console.OK
    heading, fast, one = capsys.readouterr().out.splitlines()
    assert heading.split() == [
        "run",
        "step",
        "loss",
        "samples_per_second",
        "training.optimizer.lr",
        "training.steps",
    ]
    assert fast.split()[-2:] == ["0.5", "1"]
    assert one.split()[-2:] == ["0.0003", "2"]
    assert console.policysmith(["runs", str(trained / "nowhere")]) == console.BUILD_FAILED


def test_the_doctor_names_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.policysmith(["doctor"]) in (console.OK, 1)
    said = capsys.readouterr().out
    assert f"torch        {torch.__version__.partition('+')[0]}" in said
    assert "frame cache" in said
