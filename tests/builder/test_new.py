"""`policysmith new`: a recipe for a dataset, from every ready-made recipe, that passes `check` and trains."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from policysmith.builder import Builder, located_policy
from policysmith.builder.data.lerobot.info import inspect
from policysmith.builder.recipe.draft import Draft, proposed, ready_made
from policysmith.builder.recipe.load import load_recipe
from policysmith.schemas import console
from policysmith.schemas.composition import composed, resolved
from policysmith.schemas.errors import CheckpointError
from policysmith.schemas.formatting import formatted
from policysmith.schemas.questions.defaults import with_defaults, without_defaults
from policysmith.schemas.yaml.document import read

from .data.synthetic import edit_json, write_dataset, write_robot

ALL = ready_made()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cameras of other sizes than those of the ready-made recipes, and short episodes."""
    root = write_dataset(tmp_path_factory.mktemp("data") / "My-Robot 7", "v3.0").root
    edit_json(root / "meta/info.json", lambda info: info.update(robot_type="widow"))
    return root


@pytest.mark.parametrize("name", ALL)
def test_every_ready_made_recipe_can_be_adapted(name: str, dataset: Path, tmp_path: Path) -> None:
    """Those with weights on the hub are read; the others are wired and run."""
    draft = Draft.of(dataset, policy=name, base=None, gibibytes=None)
    file = tmp_path / "mine.yaml"
    file.write_text(draft.text(file))
    recipe = load_recipe(file)
    assert formatted(file.read_text()) == file.read_text()
    assert recipe.sections.data.horizon <= 9
    if name.startswith("tiny/") or name == "vit_mlp":
        builder = Builder.from_recipe(file).check()
        assert {warning.code for warning in builder.warnings} <= {"W005 epochs", "W010 poor-statistics"}


def test_the_header_describes_the_data(dataset: Path, tmp_path: Path) -> None:
    text = Draft.of(dataset, policy="tiny/act", base=None, gibibytes=None).text(tmp_path / "mine.yaml")
    assert "# act on 5 episodes of widow, 30 frames at" in text
    assert "#   camera top: " in text
    assert "#   policysmith train mine.yaml" in text
    assert f"path: {dataset}" in text
    assert "name: act_tiny_my_robot_7" in text


def test_a_path_below_the_recipe_is_relative(dataset: Path) -> None:
    text = Draft.of(dataset, policy="tiny/act", base=None, gibibytes=None).text(dataset.parent / "mine.yaml")
    assert "path: My-Robot 7\n" in text


def test_several_tasks_ask_for_language_and_memory_decides_the_size(dataset: Path) -> None:
    info = inspect(dataset)
    assert len(info.tasks) == 2
    assert [proposed(info, memory) for memory in (None, 12, 24, 80)] == [
        "tiny/bc_transformer",
        "dit_flow",
        "smolvla",
        "pi05",
    ]


class Terminal(io.StringIO):
    """Typed lines."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_is_asked_for_what_no_flag_says(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.yaml").touch()
    typed = f"nowhere\n{dataset}\ntiny/vitmlp\ntiny/vit_mlp\ntaken.yaml\n\n"
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    assert console.policysmith(["new"]) == console.OK
    said = capsys.readouterr().err
    assert "5 episodes, 30 frames, 2 tasks" in said
    assert "did you mean `tiny/vit_mlp`?" in said
    assert said.count("Directory of a LeRobot dataset: ") == said.count("Policy [tiny/bc_transformer]: ") == 2
    assert said.count("Recipe to write [vit_mlp_tiny_my_robot_7.yaml]: ") == 2
    assert load_recipe(tmp_path / "vit_mlp_tiny_my_robot_7.yaml")
    monkeypatch.setattr(sys, "stdin", Terminal(f"{dataset}\n"))
    assert console.policysmith(["new", "--policy", "tiny/act"]) == console.BUILD_FAILED
    assert "the answers ended" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(SystemExit):
        console.policysmith(["new"])
    assert "--data" in capsys.readouterr().err


def test_three_commands_train_a_policy_in_an_empty_directory(
    dataset: Path, tmp_path: Path, command: Any
) -> None:
    for words in (
        ["policysmith", "new", "--data", dataset, "--policy", "tiny/vit_mlp", "--out", "mine.yaml"],
        ["policysmith", "check", "mine.yaml"],
        ["policysmith", "train", "mine.yaml", "-o", "training.steps=2", "--device", "cpu"],
    ):
        done = command(words, tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "vit_mlp_tiny_my_robot_7" / "policy" / "model.safetensors").exists()


def test_nothing_is_overwritten_or_left_behind(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("precious")
    words = ["new", "--data", str(dataset)]
    assert console.policysmith([*words, "--out", "mine.yaml"]) == console.BUILD_FAILED
    assert "mine.yaml exists" in capsys.readouterr().err
    assert console.policysmith([*words, "--policy", "atc"]) == console.BUILD_FAILED
    assert "did you mean `act`?" in capsys.readouterr().err
    wide = "policy: {head: {type: act, reads: [vision.tokens, proprio.pooled], width: 33, heads: 2}}"
    (tmp_path / "wrong.yaml").write_text(f"base: {ALL['tiny/act']}\nname: wrong\n{wide}\n")
    assert (
        console.policysmith([*words, "--from", "wrong.yaml", "--out", "new.yaml"]) == console.INVALID_RECIPE
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "wrong.yaml"]


def test_a_trained_policy_is_fine_tuned_on_another_robot(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights whose shapes no width of the robot decides are those of the base; the others begin anew."""
    monkeypatch.chdir(tmp_path)
    other = write_robot(tmp_path / "other", state=9, action=3, cameras={"side": (40, 48)})
    mine = tmp_path / "base.yaml"
    mine.write_text(Draft.of(other, policy="tiny/vit_mlp", base=None, gibibytes=None).text(mine))
    base = Builder.from_recipe(mine).build()
    base.save_pretrained(tmp_path / "base")
    words = ["new", "--from", "base", "--data", str(dataset), "--out", "new.yaml"]
    assert console.policysmith(words) == 0
    text = Path("new.yaml").read_text()
    assert "    from: base\n" in text
    assert f"path: {dataset}\n" in text
    old, new = base.state_dict(), Builder.from_recipe(tmp_path / "new.yaml").build().state_dict()
    same = {key for key in old.keys() & new.keys() if old[key].shape == new[key].shape}
    weights = {key for key in same if key.startswith("backbones.vision.")}
    assert weights
    assert all(torch.equal(old[key], new[key]) for key in weights)
    assert any(old[key].shape != new[key].shape for key in old.keys() & new.keys())


def test_a_directory_without_a_policy_is_no_base(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    words = ["new", "--from", "empty", "--data", str(dataset), "--out", "new.yaml"]
    assert console.policysmith(words) != 0
    assert "empty" in capsys.readouterr().err
    assert not Path("new.yaml").exists()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `part.py`, which registers a part, and an untrained policy of it with two cameras."""
    root = tmp_path_factory.mktemp("base")
    cameras = {"front_view": (40, 48), "wrist": (40, 48), "back": (40, 48)}
    write_robot(root / "other", state=9, action=3, cameras=cameras)
    recipe = root / "base.yaml"
    draft = Draft.of(root / "other", policy="tiny/vit_mlp", base=None, gibibytes=None)
    recipe.write_text(draft.text(recipe))
    Builder.from_recipe(recipe).build().save_pretrained(root / "base")
    return root


def test_other_cameras_are_matched_by_name(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_robot(tmp_path / "mine", state=9, action=3, cameras={"wrist": (40, 48), "front": (40, 48)})
    assert (
        console.policysmith(["new", "--from", str(base / "base"), "--data", str(data), "--out", "new.yaml"])
        == 0
    )
    text = Path("new.yaml").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("    cameras: ")]
    assert line.startswith("    cameras: {back: null, front_view: front, wrist: wrist}  # ")
    said = "cameras proposed by name: back left out, front_view is front, wrist is wrist"
    assert said in capsys.readouterr().err
    assert "cameras: {" not in Draft.of(base / "other", policy=None, base=base / "base", gibibytes=None).text(
        tmp_path / "same.yaml"
    )


def test_a_camera_that_is_left_out_is_read_no_more(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cameras = [f"observation.images.{name}" for name in ("back", "wrist")]
    given = Builder.from_recipe(base / "base.yaml").override({"policy.backbones.vision.reads": cameras})
    given.build().save_pretrained(tmp_path / "base")
    data = write_robot(tmp_path / "mine", state=9, action=3, cameras={"wrist": (40, 48)})
    words = ["new", "--from", "base", "--data", str(data), "--out", "new.yaml"]
    assert console.policysmith(words) == 0
    assert (
        load_recipe(Path("new.yaml")).document.value["policy"]["backbones"]["vision"]["reads"] == cameras[1:]
    )


def test_defaults_of_a_trained_policy_are_not_written_out(base: Path, tmp_path: Path) -> None:
    given = load_recipe(base / "base.yaml").document.value
    drafted = Draft.of(base / "other", policy=None, base=base / "base", gibibytes=None).recipe(
        tmp_path / "new.yaml"
    )
    drafted["policy"].pop("init")
    assert drafted["policy"] == without_defaults(given)["policy"]
    assert "collator" not in drafted
    assert "optimizer" not in drafted["training"] or "betas" not in drafted["training"]["optimizer"]


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_without_its_defaults_means_the_same(name: str) -> None:
    full = with_defaults(resolved(composed(read(ALL[name]))).value)
    bare = without_defaults(full)
    assert with_defaults(bare) == full
    assert len(str(bare)) < len(str(full))


def test_a_policy_on_the_hub_is_found_by_its_name(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        located_policy,
        "download_policy",
        lambda name, patterns: base / "base" if name == "somebody/policy" else None,
    )
    draft = Draft.of(base / "other", policy=None, base="somebody/policy", gibibytes=None)
    assert draft.recipe(tmp_path / "new.yaml")["policy"]["init"] == "somebody/policy"


def test_what_is_no_policy_is_refused_like_in_a_recipe(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "act").mkdir()
    (tmp_path / "act" / "config.json").write_text('{"type": "act", "input_features": {}}')
    for given, complaint in (
        ("act", "import-lerobot"),
        ("./nowhere", "no policy exists"),
        ("no/body", "no such policy"),
    ):
        with pytest.raises(CheckpointError, match=complaint):
            Draft.of(base / "other", policy=None, base=given, gibibytes=None)


def test_imports_and_paths_of_the_base_are_found_from_the_new_recipe(base: Path, tmp_path: Path) -> None:
    (base / "mine").mkdir()
    (base / "mine" / "part.py").touch()
    (base / "mine" / "weights").mkdir()
    recipe = base / "mine" / "mine.yaml"
    recipe.write_text(
        f"base: {ALL['tiny/act']}\nname: mine\nimports: [part.py]\n"
        "policy: {backbones: {vision: {pretrained: weights}}}\n"
    )
    drafted = Draft.of(base / "other", policy=None, base=recipe, gibibytes=None).recipe(tmp_path / "new.yaml")
    assert drafted["imports"] == [str(base / "mine" / "part.py")]
    assert drafted["policy"]["backbones"]["vision"]["pretrained"] == str(base / "mine" / "weights")
