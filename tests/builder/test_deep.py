"""`check --deep`: files and real samples, beyond what the metadata tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from policysmith.builder import Builder
from policysmith.builder.data.frames.probing import probe_cameras
from policysmith.builder.data.lerobot.layout import read_layout
from policysmith.components.collators.default import DefaultCollator
from policysmith.components.transforms.normalize import Normalize
from policysmith.schemas import console
from policysmith.schemas.errors import RecipeError

RECIPES = Path(__file__).parents[2] / "recipes"
TINY = sorted((RECIPES / "tiny").glob("*.yaml"))
PI0 = {
    "collator.tokenizer": "policysmith/tiny",
    "policy.backbones.vlm": {"type": "vlm", "architecture": "google/paligemma-3b-pt-224"},
}


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[] if path.stem == "pi0" else pytest.mark.slow) for path in TINY],
    ids=lambda path: path.stem,
)
def test_real_samples_go_through_every_recipe(path: Path) -> None:
    Builder.from_recipe(path).check(deep=True)


@pytest.mark.slow
def test_a_policy_of_billions_is_checked_in_little_memory(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    code = (
        "import resource, sys, time\n"
        "from policysmith.builder import Builder\n"
        f"builder = Builder.from_recipe({str(RECIPES / 'pi0.yaml')!r}).override({PI0!r}).check(deep=True)\n"
        "assert builder.summary.parameters > 3e9\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 2e9\n"
        "assert time.process_time() < 15\n"
    )
    (tmp_path / "measure.py").write_text(code)
    done = command(["python", "measure.py"], tmp_path)
    assert done.returncode == 0, done.stderr


def spoil(monkeypatch: pytest.MonkeyPatch, part: Any, method: str, change: Callable[[Any], Any]) -> None:
    """Make a method of a part change its result for real samples; those of the dry run are on the meta device."""
    original = getattr(part, method)

    def changed(self: Any, given: Any) -> Any:
        batch = original(self, given)
        real = isinstance(batch["action"], torch.Tensor) and not batch["action"].is_meta
        return {**batch, "action": change(batch["action"])} if real else batch

    monkeypatch.setattr(part, method, changed)


@pytest.mark.parametrize(
    ("part", "method", "change", "said"),
    [
        (DefaultCollator, "__call__", torch.Tensor.double, "`action` of real samples is torch.float64"),
        (
            DefaultCollator,
            "__call__",
            lambda value: value[..., :2],
            "of real samples is torch.float32 (2, 4, 2)",
        ),
        (DefaultCollator, "__call__", lambda value: value / 0, "the data has `action` infinite or NaN"),
        (
            Normalize,
            "forward",
            lambda value: value / 0,
            "transform `normalize` makes `action` infinite or NaN",
        ),
    ],
)
def test_what_only_real_samples_show_is_found(
    part: Any,
    method: str,
    change: Callable[[Any], Any],
    said: str,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(monkeypatch, part, method, change)
    builder = Builder.from_recipe(tiny).check()
    with pytest.raises(RecipeError) as caught:
        builder.check(deep=True)
    assert said in str(caught.value)


def test_every_file_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = read_layout(RECIPES / "datasets" / "drawer_open", None)
    probed: list[Path] = []
    monkeypatch.setattr(
        "policysmith.builder.data.frames.probing._probe_video", lambda source, fps: probed.append(source.path)
    )
    sources = {Path(f"{number}.mp4"): _Source(Path(f"{number}.mp4")) for number in range(60)}
    monkeypatch.setattr("policysmith.builder.data.frames.probing.frame_sources", lambda *_: sources)
    monkeypatch.setattr("policysmith.builder.data.frames.probing._size", lambda path: 5_000)
    cameras, episodes = layout.choose_cameras(None), layout.choose_episodes(None)
    probe_cameras(layout, cameras, episodes)
    assert len(probed) == 48
    probed.clear()
    probe_cameras(layout, cameras, episodes, files=None)
    assert sorted(probed) == sorted(sources)


class _Source:
    frames = 10

    def __init__(self, path: Path) -> None:
        self.path = path


def test_the_flag_of_the_command(
    tiny: dict[str, Any], to_yaml: Callable[..., Path], monkeypatch: Any
) -> None:
    asked: list[bool] = []
    check = Builder.check

    def recorded(self: Builder, *, deep: bool = False) -> Builder:
        asked.append(deep)
        return check(self)

    monkeypatch.setattr(Builder, "check", recorded)
    path = str(to_yaml(tiny))
    assert console.policysmith(["check", path, "--deep"]) == console.OK
    assert console.policysmith(["check", path]) == console.OK
    assert asked == [True, False]
