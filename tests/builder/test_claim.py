"""The directory of a run is refused before anything is built, wherever a run could not end well in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from policysmith.builder import Builder, runs
from policysmith.schemas.errors import CheckpointError


@pytest.fixture
def builder(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Builder:
    """A builder that must not look at its data."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the data was planned before the directory was claimed")

    monkeypatch.setattr("policysmith.builder.builder.plan_data", refuse)
    return Builder.from_recipe(tiny)


def test_an_empty_output_is_refused(builder: Builder) -> None:
    with pytest.raises(CheckpointError, match="`output` is empty; name a directory"):
        builder.train(output="")


def test_a_link_into_nowhere_is_named(builder: Builder, tmp_path: Path) -> None:
    link = tmp_path / "run"
    link.symlink_to(tmp_path / "gone")
    for output in (link, link / "deeper"):
        with pytest.raises(CheckpointError, match=f"{link} is a link to {tmp_path / 'gone'}, which does not"):
            builder.train(output=output)


def test_a_run_in_use_is_refused_when_it_is_claimed(builder: Builder, tmp_path: Path) -> None:
    in_use = pytest.raises(CheckpointError, match=r"is in use: process \d+ on .* is training there")
    with runs.held(tmp_path / "run"), in_use:
        builder.train(output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_directory_with_a_run_is_refused(builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="already holds a run; continue it with `--resume`"):
        builder.train(output=tmp_path / "run")


def test_a_directory_in_the_place_of_the_policy_link_is_refused(builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "run" / "policy").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="policy is not a link"):
        builder.train(output=tmp_path / "run")


def test_a_very_long_name_is_refused(builder: Builder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="choose another `--output`"):
        builder.train(output=tmp_path / ("a" * 5000))


def test_an_output_that_is_a_file_is_refused(builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match="run is a file, so it cannot hold a run"):
        builder.train(output=tmp_path / "run")


@pytest.mark.parametrize("name", ["recipe.yaml", "log.jsonl", "run.json"])
def test_a_pipe_in_the_place_of_a_file_is_refused(name: str, builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / name)
    with pytest.raises(CheckpointError, match=f"{name} is not a regular file"):
        builder.train(output=tmp_path / "run")


@pytest.mark.parametrize(
    ("training", "warned"),
    [
        ({"save_every": 2, "save_minutes": 5.0}, True),
        ({"save_every": 2, "save_minutes": None}, False),
        ({"save_every": 2}, False),
        ({"save_minutes": 5.0}, False),
    ],
)
def test_an_option_that_another_one_disables_is_a_warning(
    training: dict[str, Any], warned: bool, tiny: dict[str, Any]
) -> None:
    tiny["training"] |= training
    tiny["policy"]["backbones"] = {"proprio": {"type": "mlp", "hidden": [], "width": 4}}
    tiny["transforms"] = []
    notes = Builder.from_recipe(tiny).notes
    assert any("`training.save_minutes` has no effect" in note for note in notes) == warned


def test_a_transform_of_images_that_nothing_reads_is_a_warning(tiny: dict[str, Any]) -> None:
    tiny["transforms"].append({"type": "flip"})
    seen = Builder.from_recipe(tiny).warnings
    tiny["policy"]["backbones"] = {"proprio": {"type": "mlp", "hidden": [], "width": 4}}
    found = [each for each in Builder.from_recipe(tiny).warnings if each.code == "W004 no-effect"]
    assert found[-1].message == "`flip` changes images that no backbone reads"
    assert "W004 no-effect" not in {each.code for each in seen}
