"""Features of frozen backbones are computed once, and training with them changes nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from policysmith.builder import Builder
from policysmith.builder.training.loop import Result
from policysmith.components.backbones.vit import Vit
from policysmith.components.collators.default import DefaultCollator
from policysmith.components.registry import COLLATORS

from ..faults import failing

CAMERA = "observation.images.corner2"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frame_cache: Path) -> Path:
    """Use a cache without features that still has the frames."""
    root = tmp_path / "cache"
    root.mkdir()
    for entry in frame_cache.iterdir():
        if entry.name != "features":
            (root / entry.name).symlink_to(entry)
    monkeypatch.setenv("POLICYSMITH_CACHE", str(root))
    return root


@pytest.fixture
def frozen(tiny: dict[str, Any]) -> dict[str, Any]:
    """Return the tiny recipe with a frozen vision backbone and nothing random before it; its samples come twice."""
    tiny["policy"]["freeze"] = ["backbones.vision.*"]
    tiny["transforms"] = [t for t in tiny["transforms"] if t["type"] != "random_shift"]
    tiny["data"]["episodes"] = [0]
    tiny["training"] |= {"steps": 12, "batch_size": 16}
    return tiny


class Recorder:
    """A reporter that keeps losses and notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.losses: list[float] = []

    def start(self, step: int, steps: int) -> None: ...

    def advance(self, step: int) -> None: ...

    def log(self, step: int, values: dict[str, float]) -> None:
        self.losses.append(values["loss"])

    def note(self, message: str) -> None:
        self.notes.append(message)

    def close(self) -> None: ...


def run(recipe: dict[str, Any], output: Path, **options: Any) -> tuple[Result, Recorder]:
    recorder = Recorder()
    return Builder.from_recipe(recipe).train(
        output=output, device="cpu", reporters=(recorder,), **options
    ), recorder


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the batch sizes of all passes of a `vit` backbone."""
    sizes: list[int] = []
    forward = Vit.forward

    def counted(self: Vit, observations: Any, outputs: Any) -> Any:
        sizes.append(len(observations[CAMERA]))
        return forward(self, observations, outputs)

    monkeypatch.setattr(Vit, "forward", counted)
    return sizes


def test_the_losses_and_weights_are_those_without_the_cache(frozen: dict[str, Any], tmp_path: Path) -> None:
    with_cache, recorder = run(frozen, tmp_path / "with")
    frozen["training"]["cache"] = "off"
    without, plain = run(frozen, tmp_path / "without")
    torch.testing.assert_close(recorder.losses, plain.losses, rtol=1e-5, atol=1e-6)
    for name, value in without.policy.state_dict().items():
        torch.testing.assert_close(with_cache.policy.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert any("once over" in note for note in recorder.notes)
    assert not any("frozen backbones" in note for note in plain.notes)


def test_random_transforms_of_what_is_not_stored_still_act(frozen: dict[str, Any], tmp_path: Path) -> None:
    frozen["transforms"].append({"type": "state_noise", "std": 0.5})
    _, recorder = run(frozen, tmp_path / "with")
    frozen["training"]["cache"] = "off"
    _, plain = run(frozen, tmp_path / "without")
    assert any("once over" in note for note in recorder.notes)
    torch.testing.assert_close(recorder.losses, plain.losses, rtol=1e-5, atol=1e-6)


def test_the_backbone_sees_each_sample_once_and_a_second_run_none(
    frozen: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = passes(monkeypatch)
    dataset, _ = Builder.from_recipe(frozen).datasets()
    _, first = run(frozen, tmp_path / "one")
    count = len(dataset)  # type: ignore[arg-type]
    assert count <= sum(sizes) <= count + 8  # and a few to learn the shapes
    sizes.clear()
    frozen["training"]["optimizer"] = {"lr": 1e-3}
    _, second = run(frozen, tmp_path / "two")
    assert sum(sizes) <= 8
    assert any("read from" in note for note in second.notes)
    assert not any("read from" in note for note in first.notes)


@pytest.mark.parametrize(
    "change",
    [
        lambda recipe: recipe["training"].update(seed=1),  # other weights
        lambda recipe: recipe["transforms"].insert(0, {"type": "crop", "size": 64, "corner": [0, 0]}),
        lambda recipe: recipe["data"].update(episodes=[1]),
        lambda recipe: recipe["data"].update(horizon=2),
        lambda recipe: recipe["policy"]["backbones"]["vision"].update(heads=4),
    ],
    ids=["weights", "transforms", "episodes", "horizon", "backbone"],
)
def test_what_features_depend_on_makes_them_new(frozen: dict[str, Any], tmp_path: Path, change: Any) -> None:
    run(frozen, tmp_path / "one")
    change(frozen)
    _, recorder = run(frozen, tmp_path / "two")
    assert any("once over" in note for note in recorder.notes)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda recipe: recipe["transforms"].insert(0, {"type": "random_shift", "pixels": 2}),
            "`random_shift` changes what it reads at random",
        ),
        (lambda recipe: recipe["training"].update(steps=2), "no sample comes twice"),
        (
            lambda recipe: recipe["policy"]["backbones"].update(
                other={"type": "conv", "channels": [4], "groups": 2, "width": 8}
            ),
            f"`{CAMERA}` is read by others too",
        ),
    ],
    ids=["random", "short", "shared"],
)
def test_where_it_cannot_be_the_run_says_why(
    frozen: dict[str, Any], tmp_path: Path, change: Any, why: str, own_cache: Path
) -> None:
    change(frozen)
    _, recorder = run(frozen, tmp_path / "run")
    assert f"frozen `vision` runs in every step: {why}" in recorder.notes
    assert not (own_cache / "features").exists()


def test_a_rare_random_change_is_noticed(frozen: dict[str, Any], tmp_path: Path) -> None:
    """Find a transform random even if it leaves these two samples unchanged, as it nearly always would."""
    frozen["transforms"].insert(0, {"type": "grayscale", "p": 0.001})
    _, recorder = run(frozen, tmp_path / "run")
    assert any("`grayscale` changes what it reads at random" in note for note in recorder.notes)


def test_features_too_large_for_the_disk_are_not_begun(
    frozen: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Builder.from_recipe(frozen).datasets()  # the frames are there already
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0, total=10**12))
    _, recorder = run(frozen, tmp_path / "run")
    assert any("runs in every step: its features take" in note for note in recorder.notes)


@pytest.mark.parametrize("damage", ["cut", "altered", "no index"])
def test_damaged_features_are_made_again(
    frozen: dict[str, Any], tmp_path: Path, own_cache: Path, damage: str
) -> None:
    _, whole = run(frozen, tmp_path / "one")
    (table,) = (path.parent for path in (own_cache / "features").glob("*/index.json"))
    index = json.loads((table / "index.json").read_text())
    stored = table / next(entry["file"] for key, entry in index.items() if key.startswith("stored.vision"))
    if damage == "cut":
        stored.write_bytes(stored.read_bytes()[:-4])
    elif damage == "altered":
        stored.write_bytes(b"\x01" * stored.stat().st_size)
    else:
        (table / "index.json").unlink()
    _, again = run(frozen, tmp_path / "two")
    assert any("is damaged" in note and "computed again" in note for note in again.notes)
    assert again.losses == whole.losses


def test_a_pass_that_dies_leaves_no_table(
    frozen: dict[str, Any], tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = Vit.forward, []

    def dies(self: Vit, observations: Any, outputs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, observations, outputs)

    monkeypatch.setattr(Vit, "forward", dies)
    with pytest.raises(KeyboardInterrupt):
        run(frozen, tmp_path / "one")
    assert all(path.suffix == ".lock" for path in (own_cache / "features").iterdir())
    monkeypatch.setattr(Vit, "forward", forward)
    run(frozen, tmp_path / "two")


def test_a_resumed_run_takes_the_same_steps(frozen: dict[str, Any], tmp_path: Path) -> None:
    _, whole = run(frozen, tmp_path / "whole")
    frozen["training"] |= {"save_every": 6}
    run(frozen, tmp_path / "parts")
    last = max((tmp_path / "parts" / "checkpoints").iterdir())
    shutil.rmtree(last)
    (tmp_path / "parts" / "policy").unlink()
    _, rest = run(frozen, tmp_path / "parts", resume=True)
    assert rest.losses == whole.losses[6:]


def test_prompts_and_their_features(frozen: dict[str, Any], tmp_path: Path) -> None:
    """Store features of token ids, which the collator makes of one length."""
    backbones = frozen["policy"]["backbones"]
    backbones["text"] = {"type": "language", "architecture": "policysmith/tiny-bert"}
    frozen["collator"] = COLLATORS.get("language").example().model_dump()
    frozen["policy"]["freeze"].append("backbones.text.*")
    _, recorder = run(frozen, tmp_path / "with")
    frozen["training"]["cache"] = "off"
    _, plain = run(frozen, tmp_path / "without")
    assert any("running frozen `text`, `vision` once over" in note for note in recorder.notes)
    torch.testing.assert_close(recorder.losses, plain.losses, rtol=1e-5, atol=1e-6)


def test_a_full_disk_is_noticed_before_anything_is_computed(
    frozen: dict[str, Any], tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    sizes = passes(monkeypatch)
    _, recorder = run(frozen, tmp_path / "run")
    assert any("cannot be written (No space left on device)" in note for note in recorder.notes)
    assert not list((own_cache / "features").glob("*.tmp"))
    assert (
        sum(sizes) <= 13 * 16 + 8
    )  # every step, the pass that counts operations, a few samples for the shapes


def test_an_error_at_any_change_of_a_file_leaves_the_steps_as_they_are(
    frozen: dict[str, Any], tmp_path: Path, own_cache: Path
) -> None:
    """The backbone then runs in every step, with the reason, or the table is whole already."""
    frozen["training"] |= {"steps": 2, "batch_size": 64}
    whole: list[float] = []
    for at in range(40):
        shutil.rmtree(own_cache / "features", ignore_errors=True)
        with failing(at, errno.EIO, own_cache / "features") as what:
            _, recorder = run(frozen, tmp_path / str(at))
        whole = whole or recorder.losses
        torch.testing.assert_close(recorder.losses, whole, rtol=1e-5, atol=1e-6)
        if what["hit"] is None:
            break
        tables = list((own_cache / "features").glob("*/index.json"))
        told = any(os.strerror(errno.EIO) in note for note in recorder.notes)
        assert told or tables, (what["hit"], recorder.notes)
        assert not list((own_cache / "features").glob("*.tmp")), what["hit"]
    assert at > 4


def test_a_table_serves_a_run_that_would_not_have_made_it(frozen: dict[str, Any], tmp_path: Path) -> None:
    run(frozen, tmp_path / "one")
    frozen["training"]["steps"] = 1
    _, recorder = run(frozen, tmp_path / "two")
    assert any("are read from" in note for note in recorder.notes)


def test_other_code_makes_other_features(
    frozen: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(frozen, tmp_path / "one")
    monkeypatch.setattr("policysmith.builder.training.frozen.key._code", lambda policy: "other")
    _, recorder = run(frozen, tmp_path / "two")
    assert any("once over" in note for note in recorder.notes)


def test_images_stay_out_of_the_table(frozen: dict[str, Any], tmp_path: Path, own_cache: Path) -> None:
    run(frozen, tmp_path / "one")
    (index,) = (own_cache / "features").glob("*/index.json")
    assert set(json.loads(index.read_text())) == {
        "observation.state",
        "action",
        "action_is_pad",
        "index",
        "stored.vision.pooled.values",
    }


def test_a_random_collator_is_noticed(
    frozen: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collate = DefaultCollator.__call__

    def noisy(self: DefaultCollator, samples: Any) -> dict[str, Any]:
        batch = collate(self, samples)
        state = batch["observation.state"]
        return {**batch, "observation.state": state + torch.randn_like(state)}

    monkeypatch.setattr(DefaultCollator, "__call__", noisy)
    _, recorder = run(frozen, tmp_path / "run")
    assert "frozen `vision` runs in every step: the collator draws random numbers" in recorder.notes


def test_samples_of_different_sizes_are_not_stored(
    frozen: dict[str, Any], tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collate = DefaultCollator.__call__

    def growing(self: DefaultCollator, samples: Any) -> dict[str, Any]:
        batch = collate(self, samples)
        return {**batch, "extra": torch.zeros(len(samples), 1 + int(batch["index"].max()))}

    monkeypatch.setattr(DefaultCollator, "__call__", growing)
    _, recorder = run(frozen, tmp_path / "run")
    assert any("differ in shape from batch to batch (`extra`" in note for note in recorder.notes)
    assert not list((own_cache / "features").glob("*/index.json"))


def test_one_random_way_leaves_the_others_stored(frozen: dict[str, Any], tmp_path: Path) -> None:
    frozen["policy"]["freeze"].append("backbones.proprio.*")
    frozen["transforms"].append({"type": "state_noise", "std": 0.1})
    _, recorder = run(frozen, tmp_path / "run")
    assert any("frozen `proprio` runs in every step: `state_noise`" in note for note in recorder.notes)
    assert any("running frozen `vision` once over" in note for note in recorder.notes)


def test_states_of_several_robots(frozen: dict[str, Any], tmp_path: Path) -> None:
    """Keep the robot in the batch, which normalization of its state needs."""
    data = frozen["data"]
    path = data.pop("path")
    episodes = data.pop("episodes")
    data["sources"] = {name: {"path": path, "episodes": episodes} for name in ("left", "right")}
    frozen["policy"]["freeze"].append("backbones.proprio.*")
    frozen["training"]["steps"] = 20
    _, recorder = run(frozen, tmp_path / "with")
    frozen["training"]["cache"] = "off"
    _, plain = run(frozen, tmp_path / "without")
    assert any("running frozen `proprio`, `vision` once over" in note for note in recorder.notes)
    torch.testing.assert_close(recorder.losses, plain.losses, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("noisy", [False, True])
def test_states_that_a_transform_joins(
    frozen: dict[str, Any], tmp_path: Path, own_cache: Path, noisy: bool
) -> None:
    """Run a backbone in every step if `concat` reads a key that a random transform changed."""
    joined = {"type": "concat", "keys": ["observation.state"], "to": "observation.joined"}
    frozen["transforms"].append(joined)
    frozen["policy"]["backbones"]["proprio"]["reads"] = ["observation.joined"]
    frozen["policy"]["freeze"] = ["backbones.proprio.*"]
    if noisy:
        frozen["transforms"].insert(-1, {"type": "state_noise", "std": 0.1})
    del frozen["policy"]["backbones"]["vision"]
    _, recorder = run(frozen, tmp_path / "with")
    assert (
        "frozen `proprio` runs in every step: `state_noise` changes what it reads at random" in recorder.notes
    ) == noisy
    assert any("once over" in note for note in recorder.notes) != noisy
    for index in (own_cache / "features").glob("*/index.json"):
        assert CAMERA not in json.loads(index.read_text())  # nobody reads it
    frozen["training"]["cache"] = "off"
    _, plain = run(frozen, tmp_path / "without")
    torch.testing.assert_close(recorder.losses, plain.losses, rtol=1e-5, atol=1e-6)
