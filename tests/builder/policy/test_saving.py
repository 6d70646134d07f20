"""A checkpoint is whole or not there, whenever the process dies; and what is damaged says so."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from policysmith.builder import Builder, RecipePolicy
from policysmith.builder.policy.storage import saving
from policysmith.schemas.errors import CheckpointError, WeightsError

CHANGES_FILES = (
    "open", "os.rename", "os.mkdir", "os.link", "os.remove", "os.rmdir", "shutil.rmtree", "ctypes.dlsym"
)  # fmt: skip


@pytest.fixture
def policy(tiny: dict[str, Any]) -> RecipePolicy:
    policy = Builder.from_recipe(tiny).build()
    assert isinstance(policy, RecipePolicy)
    return policy


def mark(policy: RecipePolicy, number: int) -> RecipePolicy:
    """Write a number into weights and config, so that a mixture of two checkpoints shows."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(number)
    policy.config.recipe["meta"] = {"number": number}
    return policy


def marks(directory: Path) -> set[int]:
    saving.check_directory(directory)
    numbers = {json.loads((directory / "config.json").read_text())["recipe"]["meta"]["number"]}
    with safe_open(directory / "model.safetensors", "pt") as weights:
        for key in weights.keys():  # noqa: SIM118
            numbers |= set(weights.get_tensor(key).unique().int().tolist())
    return numbers


def save_and_die(policy: RecipePolicy, directory: Path, at: int) -> bool:
    """Save in a forked process that kills itself before its `at`-th change of a file; tells whether it lived."""
    child = os.fork()
    if child == 0:
        count = 0

        def die(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event in CHANGES_FILES:
                count += 1
                if count > at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
        policy.save_pretrained(directory)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return not os.WIFSIGNALED(status)


@pytest.mark.parametrize("former", ["none", "empty", "whole", "whole, no atomic exchange", "whole, others"])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(
    former: str, policy: RecipePolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if former.endswith("exchange"):
        monkeypatch.setattr(saving.sys, "platform", "another")
    home = tmp_path / "home"
    target = home / "policy"
    if former.startswith("whole"):
        mark(policy, 1).save_pretrained(tmp_path / "before" / "policy")
        if former.endswith("others"):
            (tmp_path / "before" / "policy" / "notes.txt").write_text("mine")
    mark(policy, 2)
    seen = set()
    for at in range(1000):
        shutil.rmtree(home, ignore_errors=True)
        if former.startswith("whole"):
            shutil.copytree(tmp_path / "before", home)
        elif former == "empty":
            target.mkdir(parents=True)
        alive = save_and_die(policy, target, at)
        if former.endswith("exchange") and not target.exists():
            with pytest.raises(CheckpointError, match=r"rename .*\.policy\.former to policy"):
                saving.check_directory(target)
            (home / ".policy.former").rename(target)
        if former.endswith("others"):
            assert (target / "notes.txt").read_text() == "mine"
            if not (target / "config.json").exists():
                with pytest.raises(CheckpointError, match=r"holds no config\.json"):
                    saving.check_directory(target)
                continue
        found = frozenset(marks(target)) if target.is_dir() and any(target.iterdir()) else frozenset()
        assert found in ({1}, {2}) if former.startswith("whole") else found in (frozenset(), {2})
        seen.add(found)
        if alive:
            break
    assert at > 10
    assert found == {2}
    assert len(seen) == 2
    assert sorted(path.name for path in home.iterdir()) == ["policy"]
    mark(policy, 2).save_pretrained(target)
    assert [path.name for path in home.iterdir()] == ["policy"]


def test_leftovers_of_killed_processes_are_cleared(policy: RecipePolicy, tmp_path: Path) -> None:
    assert not save_and_die(policy, tmp_path / "policy", 5)
    assert any(".staging-" in path.name for path in tmp_path.iterdir())
    policy.save_pretrained(tmp_path / "policy")
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_saving_into_a_directory_replaces_the_checkpoint_and_nothing_else(
    policy: RecipePolicy, tmp_path: Path
) -> None:
    target = tmp_path / "policy"
    (target / "logs").mkdir(parents=True)
    (target / "logs" / "train.jsonl").write_text("{}")
    (target / "link").symlink_to("logs")
    (target / "model.safetensors.index.json").write_text("{}")  # of a former, sharded checkpoint
    policy.save_pretrained(target)
    assert (target / "logs" / "train.jsonl").read_text() == "{}"
    assert (target / "link").readlink() == Path("logs")
    assert not (target / "model.safetensors.index.json").exists()
    assert (target / "logs" / "train.jsonl").stat().st_nlink == 1


def test_only_a_directory_of_its_own_is_replaced(policy: RecipePolicy, tmp_path: Path) -> None:
    target = tmp_path / "policy"

    def save() -> bool:
        before = target.stat().st_ino
        policy.save_pretrained(target)
        assert saving.check_directory(target) is None  # type: ignore[func-returns-value]
        return target.stat().st_ino != before

    policy.save_pretrained(target)
    assert save()
    (target / "model_of_mine.safetensors").write_text("mine")
    assert not save()
    assert (target / "model_of_mine.safetensors").read_text() == "mine"
    (target / "model_of_mine.safetensors").unlink()
    assert save()
    shutil.rmtree(target)
    (target / "collator").mkdir(parents=True)
    (target / "collator" / "code.py").write_text("mine")
    assert not save()
    assert (target / "collator" / "code.py").read_text() == "mine"


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_the_working_directory_stays_alive(
    inside: str, policy: RecipePolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / inside).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / inside)
    for number in (1, 2):
        mark(policy, number).save_pretrained("." if not inside else "..")
        assert marks(tmp_path) == {number}
        assert Path.cwd().samefile(tmp_path / inside)
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_files_of_another_policy_are_left_and_named(
    policy: RecipePolicy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    policy.recipe_text = None
    policy.save_pretrained(tmp_path)
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    assert f"{tmp_path / 'recipe.yaml'} belongs to another policy" in caplog.text


def test_a_sharded_checkpoint_takes_the_place_of_a_single_file(policy: RecipePolicy, tmp_path: Path) -> None:
    mark(policy, 1).save_pretrained(tmp_path / "policy")
    mark(policy, 2).save_pretrained(tmp_path / "policy", max_shard_size="20KB")
    assert not (tmp_path / "policy" / "model.safetensors").exists()
    loaded = AutoModel.from_pretrained(tmp_path / "policy")
    assert all((parameter == 2).all() for parameter in loaded.parameters())


def test_a_directory_that_cannot_be_replaced_is_filled(
    policy: RecipePolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving.Path, "is_mount", lambda self: self == tmp_path.resolve())
    (tmp_path / "mine.txt").write_text("mine")
    for number in (1, 2):
        mark(policy, number).save_pretrained(tmp_path)
        assert marks(tmp_path) == {number}
    assert (tmp_path / "mine.txt").exists()
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_a_link_to_a_directory_is_followed(policy: RecipePolicy, tmp_path: Path) -> None:
    mark(policy, 1).save_pretrained(tmp_path / "step-1")
    (tmp_path / "policy").symlink_to("step-1")
    mark(policy, 2).save_pretrained(tmp_path / "policy")
    assert (tmp_path / "policy").is_symlink()
    assert marks(tmp_path / "step-1") == {2}


def test_one_process_of_many_writes(policy: RecipePolicy, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path / "policy", is_main_process=False)
    assert not (tmp_path / "policy").exists()


def test_a_file_is_no_directory(policy: RecipePolicy, tmp_path: Path) -> None:
    (tmp_path / "policy").write_text("")
    with pytest.raises(CheckpointError, match="is a file; name a directory"):
        policy.save_pretrained(tmp_path / "policy")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def remove(path: Path) -> None:
    path.unlink()


def listed(path: Path) -> None:
    path.write_text("[]")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", [empty, cut, remove, listed])
def test_damage_names_file_and_cure(
    name: str, damage: Callable[[Path], None], policy: RecipePolicy, tmp_path: Path
) -> None:
    policy.save_pretrained(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"{name}.*(use another one of the run|name the directory)"):
        RecipePolicy.from_pretrained(tmp_path)
    if name == "model.safetensors":
        with pytest.raises(CheckpointError, match=name):
            AutoModel.from_pretrained(tmp_path)


def test_a_config_without_a_recipe_is_refused(policy: RecipePolicy, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "policysmith_policy"}')
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="holds no recipe"):
        AutoModel.from_pretrained(tmp_path)


def test_a_directory_that_is_not_there_is_no_name_on_a_hub(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        RecipePolicy.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.pop("head.layers.0.weight"), r"not in the checkpoint: head\.layers\.0\.weight"),
        (lambda state: state.update(stray=torch.zeros(1)), r"not in the model: stray"),
        (
            lambda state: state.update({"head.layers.0.bias": torch.zeros(3)}),
            r"of another shape: head\.layers\.0\.bias",
        ),
    ],
    ids=["missing", "unexpected", "mismatched"],
)
@pytest.mark.parametrize("forgiving", [False, True])
def test_weights_that_do_not_fit_are_an_error(
    change: Callable[[dict[str, Any]], Any],
    complaint: str,
    forgiving: bool,
    policy: RecipePolicy,
    tmp_path: Path,
) -> None:
    policy.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(WeightsError, match=complaint):
        AutoModel.from_pretrained(tmp_path, **({"ignore_mismatched_sizes": True} if forgiving else {}))
