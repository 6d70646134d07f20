"""Every snippet and command of README and docs runs, in a folder that looks like a fresh clone."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from policysmith.components.registry import REGISTRIES
from policysmith.schemas import arguments, console
from policysmith.schemas.recipe import DataSection

ROOT = Path(__file__).parents[2]
Run = Callable[..., str]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
POLICIES = ROOT / "docs" / "policies.md"


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def separately(folder: Path, *command: str) -> str:
    """Run a command of a checkout's copy in a new process, and return its output."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}:{folder}/.namespace:{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def run(command: Callable[..., Any], clone: Path) -> Run:
    """`run(*words)`: run a command in the clone, and return its output."""

    def do(*words: str) -> str:
        done = command(words, clone)
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout)

    return do


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    return tmp_path


def test_the_recipe_of_the_readme_is_good(clone: Path) -> None:
    (recipe,) = blocks(ROOT / "README.md", "yaml")
    (clone / "my_policy.yaml").write_text(recipe)
    assert console.policysmith(["check", str(clone / "my_policy.yaml")]) == console.OK
    assert len(recipe.splitlines()) <= 11


def test_the_error_of_the_readme_is_what_is_said(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe,) = blocks(ROOT / "README.md", "yaml")
    (shown,) = blocks(ROOT / "README.md", "text")
    wrong = recipe.replace(
        "reads: [vision.tokens, proprio]}", "reads: [vision.tokens, proprio], hiden: [512]}"
    )
    (clone / "my_policy.yaml").write_text(wrong)
    monkeypatch.chdir(clone)
    assert console.policysmith(["check", "my_policy.yaml"]) == console.INVALID_RECIPE
    assert shown.rstrip() in capsys.readouterr().err


def test_the_python_of_the_readme_runs(clone: Path, run: Run) -> None:
    builder, loading, _ = blocks(ROOT / "README.md", "python")
    (clone / "snippets.py").write_text(builder + loading + "print(tuple(action.shape))\n")
    assert run("python", "snippets.py").endswith("(4,)\n")
    assert len(builder.strip().splitlines()) <= 8


def test_the_part_of_the_readme_passes_the_contract_tests_unasked(clone: Path) -> None:
    """As a stranger does it: one file, in a copy of the checkout, and nothing else."""
    part = blocks(ROOT / "README.md", "python")[2]
    for name in ("builder", "components", "schemas", "tests"):
        shutil.copytree(ROOT / name, clone / name)
    shutil.copytree(ROOT / ".namespace", clone / ".namespace", symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", clone)
    (clone / "components" / "backbones" / "mean_color.py").write_text(part)
    recipe = blocks(ROOT / "README.md", "yaml")[0].replace("vision.tokens", "vision")
    (clone / "mine.yaml").write_text(re.sub(r"vision: \{.*\}", "vision: {type: mean_color}", recipe))
    both = (  # one process, because importing torch takes the longest
        "import pytest; from policysmith.schemas.console import policysmith as p; "
        "raise SystemExit(p(['check', 'mine.yaml']) or pytest.main(['-q', '-p', 'no:cacheprovider', '-W', 'ignore::pytest.PytestAssertRewriteWarning', 'tests/components/contracts', '-k', 'mean_color']))"
    )
    told = separately(clone, sys.executable, "-c", both)
    assert "(B, 3)" in told
    assert re.search(r"\b([5-9]|\d\d) passed", told)


def test_the_hand_written_policy_trains_and_acts(clone: Path, run: Run, command: Any) -> None:
    page = ROOT / "docs" / "hand_written_policy.md"
    module, use = blocks(page, "python")
    (recipe,) = blocks(page, "yaml")
    (train,) = blocks(page, "bash")
    (clone / "color_policy.py").write_text(module)
    (clone / "color_policy.yaml").write_text(recipe)
    refused = command(["build-and-train", "color_policy.yaml"], clone)
    assert refused.returncode == console.INVALID_RECIPE
    assert "--allow-imports" in refused.stderr
    run(*shlex.split(train))
    act = (
        "import torch\n"
        "observation = {'observation.images.corner2': torch.zeros(3, 96, 96, dtype=torch.uint8),\n"
        "               'observation.state': torch.zeros(4), 'task': 'open the drawer'}\n"
        "print(policy.select_action(observation).isfinite().all().item(), policy.config.hidden_dim)\n"
    )
    (clone / "use.py").write_text(use + act)
    assert run("python", "use.py").endswith("True 64\n")


def test_one_policy_learns_from_two_robots_and_drives_each(clone: Path, run: Run) -> None:
    page = ROOT / "docs" / "multi_embodiment.md"
    second, use = blocks(page, "python")
    (recipe,), (commands,), (shown,) = (blocks(page, language) for language in ("yaml", "bash", "text"))
    (clone / "second_robot.py").write_text(second)
    (clone / "two_robots.yaml").write_text(recipe)
    make, check, train, evaluate = (shlex.split(line) for line in commands.splitlines())
    run("python", *make[1:])
    assert shown in run(*check)
    run(*train)
    assert "robot          second" in run(*evaluate)
    (clone / "use.py").write_text(use + "print(tuple(action.shape), action.isfinite().all().item())\n")
    assert run("python", "use.py").endswith("(7,) True\n")


def test_training_starts_from_a_trained_policy(clone: Path, run: Run) -> None:
    commands, own_robot = blocks(ROOT / "docs" / "fine_tuning.md", "bash")
    first, second, check = commands.replace("$PWD", str(clone)).splitlines()
    run(*shlex.split(first))
    assert "starts from" in run(*shlex.split(second))
    assert "values\n" in run(*shlex.split(check))
    new, check = own_robot.splitlines()
    run(*shlex.split(new))
    assert "init: runs/first\n" in (clone / "mine.yaml").read_text()
    assert "values\n" in run(*shlex.split(check))


@pytest.mark.sim
def test_the_examples_of_the_api_run_in_order(clone: Path, run: Run) -> None:
    code = "".join(blocks(ROOT / "docs" / "api.md", "python"))
    (clone / "api.py").write_text(code + "print(tuple(action.shape))\n")
    shown = run("python", "api.py")
    assert "E003 unknown-key" in shown
    assert shown.endswith("(4,)\n")


def test_the_trainer_of_transformers_trains_and_judges(clone: Path, run: Run) -> None:
    (snippet,) = blocks(ROOT / "docs" / "transformers_trainer.md", "python")
    (clone / "trainer.py").write_text(snippet)
    run("python", "trainer.py")
    assert (clone / "runs" / "trainer" / "policy" / "model.safetensors").exists()


VARIANTS = [
    line
    for block in blocks(POLICIES, "bash")
    for line in block.splitlines()
    if line.startswith("policysmith")
]
REFUSED = re.findall(r"^\| `(policysmith [^|]*)` \| (.+) \|$", POLICIES.read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", VARIANTS)
def test_a_variant_of_a_policy_is_what_it_says(
    command: str, clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Good, perhaps with warnings, but for the last one, which is shown with its report."""
    monkeypatch.chdir(clone)
    (shown,) = blocks(POLICIES, "text")
    code = console.policysmith(shlex.split(command)[1:])
    written = capsys.readouterr().err
    if command == VARIANTS[-1]:
        assert (code, written) == (console.INVALID_RECIPE, shown)
    else:
        assert code == console.OK
        assert "error" not in written


@pytest.mark.parametrize(("command", "said"), REFUSED)
def test_parts_that_do_not_fit_are_told(
    command: str,
    said: str,
    clone: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(clone)
    assert console.policysmith(shlex.split(command)[1:]) == console.INVALID_RECIPE
    assert said in capsys.readouterr().err.splitlines()[0]


def test_recipes_compose_as_the_page_says(
    clone: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "recipes.md"
    monkeypatch.chdir(clone)
    for recipe in blocks(page, "yaml"):
        (clone / "mine.yaml").write_text(recipe)
        assert console.policysmith(["check", "mine.yaml"]) == console.OK, capsys.readouterr().err
    shutil.copy(ROOT / "tests" / "builder" / "own_part.py", clone / "my_parts.py")
    for line in "".join(blocks(page, "bash")).splitlines():
        if "my_parts.py" in line:
            run(*shlex.split(line))  # in a process of its own, which registers parts
        else:
            assert console.policysmith(shlex.split(line)[1:]) == console.OK, capsys.readouterr().err
    assert "mean_colour" in (clone / "recipe.json").read_text()


def test_the_commands_of_the_page_about_commands_work(clone: Path, run: Run, command: Any) -> None:
    page = ROOT / "docs" / "commands.md"
    for line in "".join(blocks(page, "bash")).splitlines():
        done = command(shlex.split(line), clone)
        assert done.returncode == 0 or "doctor" in line, done.stdout + done.stderr
    (recipe,) = blocks(page, "yaml")
    (clone / "trial.yaml").write_text(recipe)
    assert "warning" not in command(["policysmith", "check", "trial.yaml"], clone).stderr


def test_a_composition_of_ones_own_trains(clone: Path, run: Run) -> None:
    (recipe,) = blocks(POLICIES, "yaml")
    (clone / "my_mix.yaml").write_text(recipe)
    run("build-and-train", "my_mix.yaml", "-o", "training.steps=2")
    train = blocks(POLICIES, "bash")[0]
    assert "runs/pi0_tiny" in run(*shlex.split(train))


def test_every_policy_is_on_its_page() -> None:
    listed = re.findall(r"^\| \[(\w+)\]\(\.\./recipes/(\w+)\.yaml\)", POLICIES.read_text(), re.MULTILINE)
    assert sorted(listed) == [
        (path.stem, path.stem) for path in sorted((ROOT / "recipes" / "tiny").glob("*.yaml"))
    ]
    assert len(VARIANTS) > 15
    assert len(REFUSED) == 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_links_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)`?", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), link
    for line in re.findall(r"^(?:policysmith|build-and-train) .*$", text, re.MULTILINE):
        program, *rest = shlex.split(line, comments=True)
        if not any(word.isupper() for word in rest):
            parser = arguments.policysmith() if program == "policysmith" else arguments.build_and_train()
            parser.parse_args(rest)


def test_the_readme_names_parts_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for kind, name in re.findall(r"explain (\w+)\.(\w+)", text):
        assert name in REGISTRIES[kind].names()


def test_the_commands_of_the_page_about_runs_work(clone: Path, run: Run) -> None:
    page = ROOT / "docs" / "runs.md"
    for block in blocks(page, "bash"):
        for line in block.splitlines():
            run(*shlex.split(line))
    assert (clone / "runs" / "first" / "policy").readlink().name == "step-00000003"


def test_what_may_change_on_resume_is_what_the_page_says() -> None:
    from policysmith.builder.training.checkpoint import CHANGEABLE

    section = (ROOT / "docs" / "runs.md").read_text().partition("## Resume")[2]
    keys = [
        key
        for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
        for key in re.findall(r"`(.*?)`", row)
    ]
    assert sorted(keys) == sorted(CHANGEABLE)


def test_the_engine_runs_and_is_measured(clone: Path, run: Run) -> None:
    page = ROOT / "docs" / "inference.md"
    run("build-and-train", "recipes/tiny/vit_mlp.yaml", "--output=runs/vit_mlp", "-o", "training.steps=1")
    (code,), (measure,) = (blocks(page, language) for language in ("python", "bash"))
    (clone / "engine.py").write_text(code + "print(runner.precision)\n")
    assert run("python", "engine.py").endswith("float32\n")
    told = run(*shlex.split(measure))
    for row in ("eager, as saved", "engine, float32", "backbones.vision", "head", "inverse"):
        assert row in told


def test_a_policy_is_exported_and_run_by_onnxruntime(clone: Path, run: Run) -> None:
    page = ROOT / "docs" / "export.md"
    recipe = "recipes/tiny/vit_mlp.yaml"
    run("build-and-train", recipe, "--output", "runs/tiny", "-o", "training.steps=1", "--device", "cpu")
    for line in "".join(blocks(page, "bash")).splitlines():
        assert "->" in run(*shlex.split(line))
    (code,) = blocks(page, "python")
    compare = """
import torch
named = {key: torch.from_numpy(value) for key, value in inputs.items()}
other = torch.export.load("act_torch/policy.pt2").module()(named)
print(np.abs(other.numpy() - actions).max() < 1e-4, described["outputs"]["action"]["shape"][1:] == list(actions.shape[1:]))
"""
    (clone / "use.py").write_text(code + compare)
    assert run("python", "use.py").endswith("True True\n")


@pytest.mark.slow
def test_recordings_of_one_s_own_robot_become_a_policy_on_it(clone: Path, command: Any) -> None:
    page = ROOT / "docs" / "your_robot.md"
    recordings, robot = blocks(page, "python")
    (shown,) = blocks(page, "yaml")
    (clone / "record.py").write_text(recordings)
    (clone / "my_robot.py").write_text(robot)
    for line in "".join(blocks(page, "bash")).splitlines():
        done = command(shlex.split(line), clone)
        assert done.returncode == 0, line + done.stdout + done.stderr
    init = YAML(typ="safe").load((clone / "tuned.yaml").read_text())["policy"]["init"]
    assert YAML(typ="safe").load(shown)["policy"]["init"] == init


@pytest.mark.slow
@pytest.mark.sim
def test_the_tutorial_runs_in_order(clone: Path, command: Any) -> None:
    """With fewer episodes and steps."""
    smaller = {"--episodes 50": "--episodes 2", "--episodes 20": "--episodes 1", "=800": "=2"}
    for line in "".join(blocks(ROOT / "docs" / "tutorial.md", "bash")).splitlines():
        for large, small in smaller.items():
            line = line.replace(large, small)
        if line.startswith("policysmith rollout"):
            line = line.replace("--episodes 2", "--episodes 1")
        done = command(shlex.split(line), clone)
        assert done.returncode == int("data check" in line), line + done.stdout + done.stderr
    assert (clone / "driven" / "meta" / "info.json").exists()


def test_the_machine_is_checked_as_the_page_of_the_installation_says(clone: Path, command: Any) -> None:
    (line,) = blocks(ROOT / "docs" / "install.md", "bash")[1].splitlines()
    assert "torch" in command(shlex.split(line), clone).stdout
    extras = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras == set(project["optional-dependencies"])


def test_the_commands_of_the_data_page_run(clone: Path, command: Any) -> None:
    describe, edit, cache = blocks(ROOT / "docs" / "data.md", "bash")
    for line in (describe + edit + cache).splitlines():
        done = command(shlex.split(line), clone)
        doubts = "data check" in line  # the bundled demonstrations have some
        assert (done.returncode, done.stderr) == (int(doubts), ""), done.stdout
        assert done.stdout
    assert (clone / "stats.png").stat().st_size > 1000
    assert (clone / "twice" / "meta" / "edit.json").exists()


@pytest.mark.parametrize("number", range(3))
def test_the_sections_of_the_data_page_are_valid(number: int) -> None:
    section = YAML(typ="safe").load(blocks(ROOT / "docs" / "data.md", "yaml")[number])["data"]
    assert DataSection.model_validate(section).path
