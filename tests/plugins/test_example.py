"""The example plug-in, built as a wheel and installed: it does what built-in parts and suites do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "plugins" / "policysmith_example"

COMMANDS = """
import sys
sys.path.insert(0, {site!r})
from policysmith.schemas.console import policysmith
for words in {commands!r}:
    code = policysmith(words)
    sys.stdout.flush()
    if code:
        raise SystemExit(f"{{words}}: {{code}}")
"""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plug-in, installed from its wheel into a directory."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PROJECT, folder / "project")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "project"], check=True
    )
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


@pytest.fixture
def run(command: Run, site: Path, tmp_path: Path) -> Run:
    """`run(*commands)`: run commands one after another in a process that sees the plug-in."""

    def do(*commands: list[str]) -> subprocess.CompletedProcess[str]:
        code = COMMANDS.format(site=str(site), commands=list(commands))
        return command(["python", "-c", code], tmp_path)

    return do


def test_an_installed_plug_in_is_used_like_built_in_parts(run: Run, tmp_path: Path) -> None:
    shutil.copy(PROJECT / "reach.yaml", tmp_path)
    steps = [
        "-o",
        "training.steps=2",
        "-o",
        "training.batch_size=8",
        "-o",
        "evaluation.episodes=1",
        "--device",
        "cpu",
    ]
    done = run(
        ["list", "backbones"],
        ["explain", "heads.linear"],
        ["schema", "--with-plugins", "--out", "recipe.json"],
        ["data", "record", "--env", "point/reach", "--episodes", "5", "--output", "reach"],
        ["check", "reach.yaml", "-o", "training.batch_size=8"],
        ["train", "reach.yaml", *steps],
        ["evaluate", "runs/reach", "--episodes", "1", "--device", "cpu"],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "color_grid" in done.stdout
    assert "Linear regression of the chunk" in done.stdout
    assert (
        "linear"
        in json.loads((tmp_path / "recipe.json").read_text())["$defs"]["heads"]["properties"]["type"]["enum"]
    )
    recording = json.loads((tmp_path / "reach" / "meta" / "recording.json").read_text())
    assert recording["versions"]["policysmith-example"] == "0.1.0"
    run_file = json.loads((tmp_path / "runs" / "reach" / "run.json").read_text())
    assert run_file["versions"]["policysmith-example"] == "0.1.0"
    assert (tmp_path / "runs" / "reach" / "evaluation" / "report.html").exists()


def test_a_mistake_in_a_part_of_a_plug_in_is_told_like_any_other(run: Run, tmp_path: Path) -> None:
    recipe = (PROJECT / "reach.yaml").read_text()
    (tmp_path / "typo.yaml").write_text(recipe.replace("cells: 8", "cels: 8"))
    assert "did you mean `cells`" in run(["check", "typo.yaml"]).stderr
