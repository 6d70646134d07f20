"""Sweeps: ranges, methods, and whole sweeps whose training is a stand-in that takes no time."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policysmith.builder.sweeping import sweep as sweeps
from policysmith.builder.sweeping.methods import METHODS, Halving, TreeParzen, method
from policysmith.builder.sweeping.space import Range, drawn, grid, overrides, parse_range
from policysmith.builder.sweeping.sweep import Plan, best, plan, run
from policysmith.builder.sweeping.trials import Trial, load
from policysmith.schemas import console
from policysmith.schemas.arguments import policysmith
from policysmith.schemas.errors import CheckpointError, PolicysmithError, RecipeError
from policysmith.schemas.questions.completion import candidates
from policysmith.schemas.yaml.document import Document, from_mapping

ROOT = Path(__file__).parents[3]
ACT = str(ROOT / "recipes" / "tiny" / "act.yaml")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[Any]]]:
    """`calls()`: name, steps and resumption of every training, whose loss is least at a rate of 0.001."""
    made: list[list[Any]] = []

    class Process:
        """A stand-in of a process, over when it begins."""

        def __init__(self, words: list[str], stdout: Any, **rest: Any) -> None:
            home = Path(words[words.index("--output") + 1])
            assert "--resume" in words
            pairs = itertools.pairwise(words)
            changes = dict(word.split("=", 1) for flag, word in pairs if flag == "-o")
            rate, steps = float(changes["training.optimizer.lr"]), int(changes["training.steps"])
            made.append([home.name, steps, (home / "log.jsonl").exists()])
            self.code = int(changes.get("training.seed") == "13")
            if self.code:
                stdout.write(b"step 1\nerror: no luck\nand more\n")
                return
            with (home / "log.jsonl").open("a") as log:
                log.write(json.dumps({"step": steps, "loss": abs(rate - 1e-3) + 1 / steps}) + "\n")

        def poll(self) -> int:
            return self.code

        wait = poll

        def send_signal(self, number: int) -> None:
            """Ignore it."""

    monkeypatch.setattr(sweeps.subprocess, "Popen", Process)
    monkeypatch.setattr(sweeps, "PAUSE", 0.0)
    return lambda: list(made)


@pytest.fixture
def document(tiny: dict[str, Any]) -> Document:
    tiny["training"]["steps"] = 9
    return from_mapping(tiny)


def planned(document: Document, *searched: str, name: str = "grid", **options: Any) -> Plan:
    return plan(document, searched, name=name, **{"trials": 9, "device": "cpu", **options})


def test_ranges_are_what_they_say() -> None:
    assert parse_range("policy.head.hidden=[64],[64, 128]").choices == ([64], [64, 128])
    rate = parse_range("training.optimizer.lr=log(1e-4, 1e-2, 3)")
    assert rate.grid() == (1e-4, 1e-3, 1e-2)
    assert parse_range("training.seed=int(0,4,3)").grid() == (0, 2, 4)
    values = [drawn([rate], 0, number)["training.optimizer.lr"] for number in range(2000)]
    assert abs(sum(math.log10(value) for value in values) / 2000 + 3.0) < 0.05
    assert drawn([rate], 0, 7) == drawn([rate], 0, 7) != drawn([rate], 1, 7)
    sizes = Counter(drawn([parse_range("x=intlog(1,8)")], 0, n)["x"] for n in range(2000))
    assert set(sizes) == set(range(1, 9))
    assert len(grid([rate, parse_range("training.seed=1,2")])) == 6
    assert list(overrides({"a.b": [1, None], "c": "x"})) == ["a.b=[1, null]", 'c="x"']


@pytest.mark.parametrize(
    "text",
    [
        "training.seed",
        "=1",
        "x=",
        "x=lgo(1,2)",
        "x=log(0,1)",
        "x=log(2,1)",
        "x=int(1)",
        "x=int(1,2,3,4)",
        "x=1,1",
    ],
)
def test_another_form_is_one_error(text: str) -> None:
    with pytest.raises(PolicysmithError, match="-s "):
        parse_range(text)


def test_keys_and_values_are_checked_before_anything_starts(
    document: Document, calls: Callable[[], Any], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        planned(
            document,
            "training.optimizer.lrr=log(1e-4,1e-2,2)",
            "training.batch_size=4,0",
            "training.seed=1,x",
        )
    found = caught.value.diagnostics
    assert {each.code for each in found} == {"E003 unknown-key", "E005 wrong-type", "E007 invalid-value"}
    assert any("did you mean `lr`?" in each.label for each in found)
    with pytest.raises(PolicysmithError, match="number of points"):
        planned(document, "training.optimizer.lr=log(1e-4,1e-2)")
    with pytest.raises(PolicysmithError, match="do not measure `validation/loss`"):
        planned(document, "training.seed=1,2", metric="validation/loss")
    assert calls() == []


def test_a_failed_trial_is_reported_and_ends_nothing(
    document: Document, calls: Callable[[], Any], tmp_path: Path
) -> None:
    told: list[str] = []
    output = tmp_path / "sweep"
    wanted = planned(document, "training.optimizer.lr=1e-4,1e-3", "training.seed=7,13", jobs=2)
    trials = run(wanted, output, told.append)
    assert [trial.status for trial in trials] == ["finished", "failed", "finished", "failed"]
    assert len(told) == 4
    assert sum("failed: error: no luck" in line for line in told) == 2
    first = best(trials, maximize=False)
    assert first is not None
    assert first.values == {"training.optimizer.lr": 1e-3, "training.seed": 7}
    rows = list(csv.DictReader((output / "table.csv").read_text().splitlines()))
    assert [row["trial"] for row in rows] == ["2", "0", "1", "3"]
    text = (output / "report.html").read_text()
    assert text.count("<path") == 2
    assert "error: no luck" in text
    assert "http-equiv" not in text
    assert "src=" not in text  # stands alone
    count = len(calls())
    assert run(wanted, output, told.append) == trials
    assert len(calls()) == count
    with pytest.raises(CheckpointError, match="another sweep"):
        run(planned(document, "training.optimizer.lr=1e-4,1e-2"), output, told.append)


@pytest.mark.parametrize("text", ["", "[1]", '{"number": "x"}', '{"number": 0}'])
@pytest.mark.parametrize("name", ["sweep.json", "trials/0001/trial.json"])
def test_a_damaged_file_is_named(
    name: str, text: str, document: Document, calls: Callable[[], Any], tmp_path: Path
) -> None:
    wanted = planned(document, "training.optimizer.lr=1e-4,1e-3")
    run(wanted, tmp_path, lambda line: None)
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=name if text[:1] != "{" else r"sweep|damaged"):
        run(wanted, tmp_path, lambda line: None)


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_sweep_goes_on_where_it_was(
    name: str, document: Document, calls: Callable[[], Any], tmp_path: Path
) -> None:
    wanted = planned(document, "training.optimizer.lr=log(1e-4,1e-2,9)", name=name)
    whole = run(wanted, tmp_path / "whole", lambda line: None)

    class KilledError(Exception):
        pass

    def die(line: str) -> None:
        if "trial 4" in line:
            raise KilledError

    with pytest.raises(KilledError):
        run(wanted, tmp_path / "killed", die)
    left = load(tmp_path / "killed")
    assert 0 < len(left) < 9
    left[0].status = "running"  # as if killed meanwhile
    left[0].results.clear()
    sweeps.save(tmp_path / "killed", left[0])
    resumed = run(wanted, tmp_path / "killed", lambda line: None)
    assert [(trial.values, trial.results) for trial in resumed] == [
        (trial.values, trial.results) for trial in whole
    ]


def test_halving_resumes_the_best_third_with_three_times_the_steps(
    document: Document, calls: Callable[[], Any], tmp_path: Path
) -> None:
    trials = run(
        planned(document, "training.optimizer.lr=log(1e-4,1e-2)", name="halving"),
        tmp_path / "s",
        lambda _: None,
    )
    assert Counter(steps for _, steps, _ in calls()) == {1: 9, 3: 3, 9: 1}
    assert all(resumed == (steps > 1) for _, steps, resumed in calls())
    ranked = sorted(trials, key=lambda trial: trial.results["1"])
    assert {trial.number for trial in ranked[:3]} == {
        trial.number for trial in trials if "3" in trial.results
    }
    assert best(trials, maximize=False) is not None
    assert Halving([{}] * 2, 100, maximize=True).steps == [100]


def test_halving_goes_on_without_those_that_failed() -> None:
    halving = Halving([{"x": n} for n in range(3)], 3, maximize=True)
    trials = {
        0: Trial(0, {"x": 0}, "failed"),
        1: Trial(1, {"x": 1}, "finished", {"1": 0.5}),
        2: Trial(2, {"x": 2}, "finished", {"1": 0.9}),
    }
    work = halving.next(trials, ())
    assert work is not None
    assert (work.number, work.steps) == (2, 3)


def test_tpe_finds_better_rates_than_chance() -> None:
    ranges = [Range("lr", (), "log", 1e-6, 1.0), Range("kind", ("a", ["b"]))]

    def loss(values: dict[str, Any]) -> float:
        return abs(math.log10(values["lr"]) + 3.0) + (values["kind"] == "a")

    def median(name: str) -> float:
        source, trials = method(name, ranges, trials=40, steps=1, seed=0, maximize=False), dict[int, Trial]()
        while (work := source.next(trials, ())) is not None:
            trials[work.number] = Trial(work.number, work.values, "finished", {"1": loss(work.values)})
        return sorted(trial.results["1"] for trial in trials.values())[20]

    assert median("tpe") < 0.6 * median("random")


def test_tpe_without_optuna_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PolicysmithError, match=r"policysmith\[sweep\]"):
        TreeParzen([], 1, 1, 0, maximize=False)


def test_the_verb_is_completed_and_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(candidates(["swe"])) == ["sweep"]
    assert list(candidates(["sweep", ACT, "-s", "policy.head.w"])) == ["policy.head.width="]
    assert list(candidates(["sweep", ACT, "--method", "h"])) == ["halving"]
    assert console.policysmith(["sweep", ACT]) == console.BUILD_FAILED
    assert "needs a range" in capsys.readouterr().err


def test_the_examples_of_the_help_can_be_parsed() -> None:
    text = policysmith().verbs["sweep"].epilog or ""
    lines = [shlex.split(line) for line in text.splitlines() if "policysmith sweep" in line]
    assert len(lines) == 2
    for words in lines:
        args = policysmith().parse_args(words[1:])
        assert all(parse_range(each) for each in args.search)
