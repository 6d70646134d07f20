"""The command line: what it hands over, what it writes, and its exit codes."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from policysmith.schemas import console, errors
from policysmith.schemas.console import build_and_train, policysmith

GOOD = """
recipe: 1
name: small
data: {path: datasets/x}
policy: {backbones: {proprio: {type: mlp}}, head: {type: mlp}}
training: {steps: 10}
"""
CALLS = (
    "train",
    "check",
    "render",
    "listing",
    "explain",
    "schema",
    "evaluate",
    "export",
    "data_record",
)
DATA_CALLS = (
    "cache_clear",
    "cache_list",
    "cache_size",
    "data_check",
    "data_convert",
    "data_edit",
    "data_info",
    "data_stats",
)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Namespace]]:
    """Calls that reach the commands of the builder, which are replaced."""
    calls: list[tuple[str, Namespace]] = []

    def record(name: str) -> Callable[[Namespace], int]:
        return lambda args: calls.append((name, args)) or 0

    monkeypatch.setitem(sys.modules, "policysmith.builder", SimpleNamespace(__path__=[]))
    for module, names in (("cli", CALLS), ("data_commands", DATA_CALLS)):
        replaced = SimpleNamespace(**{name: record(name) for name in names})
        monkeypatch.setitem(sys.modules, f"policysmith.builder.{module}", replaced)
    return calls


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    return str(path)


def test_train(called: list[tuple[str, Namespace]], recipe: str) -> None:
    arguments = [
        recipe,
        "-o",
        "training.steps=1",
        "-o",
        "name=x",
        "--output",
        "d",
        "--resume",
        "--device",
        "cpu",
    ]
    assert build_and_train(arguments) == 0
    ((name, args),) = called
    assert name == "train"
    assert args.document.value["training"] == {"steps": 1}
    assert vars(args) | {"function": "", "document": None} == {
        "document": None,
        "function": "",
        "recipe": recipe,
        "override": ["training.steps=1", "name=x"],
        "output": "d",
        "resume": True,
        "verify": True,
        "allow_imports": False,
        "profile": False,
        "device": "cpu",
    }


def test_train_is_a_verb_too(called: list[tuple[str, Namespace]], recipe: str) -> None:
    words = [recipe, "-o", "training.steps=1", "--profile", "--device", "cpu"]
    assert policysmith(["train", *words]) == build_and_train(words) == 0
    (_, one), (_, other) = ((name, vars(args) | {"document": None}) for name, args in called)
    assert one == other


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["trian", "r.yaml"], "did you mean `train`?"),
        (["r.yaml"], "did you mean `policysmith check r.yaml` or `policysmith train r.yaml`?"),
        (["data", "recrod"], "did you mean `record`?"),
        (["check", "r.yaml", "training.steps=5"], "written `-o training.steps=5`"),
        (["check", "r.yaml", "--transforms[0].size=5"], "written `-o transforms[0].size=5`"),
    ],
    ids=" ".join,
)
def test_wrong_usage_has_a_cure(words: list[str], cure: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        policysmith(words)
    assert cure in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "function", "values"),
    [
        (["schema", "--write"], "schema", {"write": True}),
        (
            ["evaluate", "runs/x", "--episodes", "3", "--control", "blind", "--open-loop"],
            "evaluate",
            {
                "checkpoint": "runs/x",
                "episodes": 3,
                "control": "blind",
                "open_loop": True,
                "env": None,
                "seed": None,
            },
        ),
        (
            ["export", "runs/x", "--merge", "--output", "d"],
            "export",
            {"checkpoint": "runs/x", "merge": True, "output": "d", "allow_imports": False},
        ),
        (["export", "runs/x", "--output", "d"], "export", {"merge": False}),
        (
            ["data", "record", "--env", "metaworld/x", "--output", "d", "--noise", "0.1"],
            "data_record",
            {"env": "metaworld/x", "output": "d", "noise": 0.1, "episodes": 50, "image_size": 96, "seed": 0},
        ),
        (["data", "info", "d"], "data_info", {"path": "d"}),
        (["data", "stats", "d", "--plot", "p.png"], "data_stats", {"path": "d", "plot": "p.png"}),
        (["data", "check", "d", "--every-frame"], "data_check", {"path": "d", "every_frame": True}),
        (
            ["data", "convert", "a.h5", "--output", "d", "--fps", "20", "--task", "go"],
            "data_convert",
            {"source": "a.h5", "output": "d", "fps": 20, "task": "go"},
        ),
        (
            ["data", "edit", "a", "b", "--output", "d", "--delete", "3,7-9", "--rename-task", "x", "y"],
            "data_edit",
            {"path": ["a", "b"], "output": "d", "delete": "3,7-9", "rename_task": [["x", "y"]]},
        ),
        (["cache", "list"], "cache_list", {}),
        (["cache", "size"], "cache_size", {}),
        (["cache", "clear", "--keep", "5GB"], "cache_clear", {"keep": "5GB"}),
    ],
)
def test_verbs(
    called: list[tuple[str, Namespace]], words: list[str], function: str, values: dict[str, Any]
) -> None:
    assert policysmith(words) == 0
    ((name, args),) = called
    assert name == function
    assert {key: getattr(args, key) for key in values} == values


def test_recipes_are_judged_before_anything_is_imported(
    called: list[tuple[str, Namespace]], recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert policysmith(["check", recipe]) == 0
    assert policysmith(["check", recipe, "-o", "training.steps=0"]) == console.INVALID_RECIPE
    assert [name for name, _ in called] == ["check"]
    assert "-o training.steps=0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["paint"],
        ["list", "wheels"],
        ["evaluate", "x", "--episodes", "0"],
        ["export", "x"],
        ["check"],
        ["data", "record"],
        ["data", "record", "--env", "e", "--output", "d", "--noise", "-1"],
        ["data", "record", "--env", "e", "--output", "d", "--noise", "inf"],
        ["data", "record", "--env", "e", "--output", "d", "--noise", "loud"],
    ],
    ids=" ".join,
)
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        policysmith(words)
    assert caught.value.code == console.USAGE
    assert "usage: policysmith" in capsys.readouterr().err


def test_no_arguments_show_where_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert policysmith([]) == build_and_train([]) == console.OK
    written = capsys.readouterr().out
    assert "start here:" in written
    assert "policysmith check recipes/vit_mlp.yaml" in written
    assert "usage: build-and-train" in written


@pytest.mark.parametrize(
    "words", [["check"], ["train"], ["evaluate"], ["import-lerobot"], ["data", "record"], ["schema"]]
)
def test_help_has_an_example(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        policysmith([*words, "--help"])
    assert caught.value.code == console.OK
    assert f"  policysmith {' '.join(words)} " in capsys.readouterr().out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        policysmith(["--version"])
    assert capsys.readouterr().out == f"policysmith {version('policysmith')}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.DatasetError("no such dataset"), console.BUILD_FAILED),
        (errors.WeightsError("no such weights"), console.BUILD_FAILED),
        (errors.SimulatorError("no graphics"), console.TRAINING_FAILED),
        (errors.TrainingError("the loss is NaN"), console.TRAINING_FAILED),
        (errors.RecipeError([]), console.INVALID_RECIPE),
        (KeyboardInterrupt(), console.INTERRUPTED),
    ],
)
def test_later_errors_are_one_clean_message(
    called: list[tuple[str, Namespace]],
    recipe: str,
    error: BaseException,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(args: Namespace) -> int:
        raise error

    monkeypatch.setattr(sys.modules["policysmith.builder.cli"], "train", fail)
    assert build_and_train([recipe]) == code
    written = capsys.readouterr().err
    assert "Traceback" not in written
    if code in (console.BUILD_FAILED, console.TRAINING_FAILED):
        assert written == f"error: {error}\n"


def test_json(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        policysmith(["check", recipe, "--format", "json", "-o", "data.horizon=0"]) == console.INVALID_RECIPE
    )
    captured = capsys.readouterr()
    (found,) = json.loads(captured.out)
    assert (found["code"], found["span"]["source"], captured.err) == ("E007", "<command line>", "")


@pytest.mark.parametrize("words", [["graph"], ["graph", "--format", "svg"], ["check"], ["summary"]])
def test_a_format_of_what_a_verb_makes_is_none_of_its_findings(
    words: list[str], recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, *options = words
    assert policysmith([verb, recipe, *options, "-o", "data.horizon=0"]) == console.INVALID_RECIPE
    assert "error[E007" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["explain", ""],
        ["summary", "r.yaml", "--gpu", "9" * 400 + "GB"],
        ["evaluate", "run", "--seed", "9" * 30],
    ],
)
def test_arguments_beyond_all_measure_are_one_message(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = policysmith(words)
    except SystemExit as left:
        code = int(left.code or 0)
    assert code in (2, console.BUILD_FAILED)
    assert "error: " in capsys.readouterr().err


def test_color_is_for_terminals(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    policysmith(["check", recipe, "-o", "name=1"])
    assert "\x1b[1;31merror" in capsys.readouterr().err
    monkeypatch.setenv("NO_COLOR", "1")
    policysmith(["check", recipe, "-o", "name=1"])
    assert "\x1b" not in capsys.readouterr().err
