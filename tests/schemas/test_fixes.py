"""Cures: every edit that is offered is right, and comments stay."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from policysmith.schemas import console
from policysmith.schemas.check import check
from policysmith.schemas.composition import composed, resolved
from policysmith.schemas.diagnostics import Diagnostic, Source, Span
from policysmith.schemas.fixes import curable, cured
from policysmith.schemas.yaml.document import Document, parse

RECIPES = Path(__file__).parents[2] / "recipes"
ALL = sorted(RECIPES.glob("**/*.yaml"))
WORD = re.compile(r"(?<![\w./])(?P<word>[a-z_]{5,}|\d+)(?=\s*[:,}\]\n]|$)")


def found(text: str, directory: Path) -> tuple[Document, list[Diagnostic]]:
    document = parse(text, directory=directory)
    return document, check(resolved(composed(document)), allow_imports=True)


def mutations(text: str) -> list[str]:
    """Return the text with one word misspelled or one number written as another type, at every place."""
    changed = []
    for match in WORD.finditer(text):
        if "#" in text[: match.start()].rpartition("\n")[2]:
            continue
        word, cut = match["word"], (text[: match.start()], text[match.end() :])
        others = [f"{word}.0", f'"{word}"'] if word.isdigit() else [word[:-2] + word[-1], f"{word}s"]
        changed += [other.join(cut) for other in others]
    return changed


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_cure_that_is_offered_cures(path: Path) -> None:
    text, offered = path.read_text(), 0
    for wrong in mutations(text)[:: 17 if "tiny" in path.parts else 61]:
        document, before = found(wrong, path.parent)
        edits = curable(before, document.root.span.source)
        if not edits:
            continue
        offered += 1
        _, after = found(cured(document.root.span.source, edits), path.parent)
        left = {(each.code, each.span.line, each.span.column) for each in after}
        assert not left & {(each.code, each.span.line, each.span.column) for each in edits}, wrong
        assert len(after) <= len(before) - len(edits), [str(each.span) for each in after]
    assert offered


WRONG = """\
recipe: 1
name: mine  # its name
data: {path: datasets/x, horizon: 8.0}
policy:
  backbones:
    # the arm
    proprio: {type: mpl, hiden: [8]}
  head: {type: mlp, hidden: 64, activation: gleu}
training: {steps: "10", save_every: 5.5}
"""
RIGHT = """\
recipe: 1
name: mine  # its name
data: {path: datasets/x, horizon: 8}
policy:
  backbones:
    # the arm
    proprio: {type: mlp, hidden: [8]}
  head: {type: mlp, hidden: [64], activation: gelu}
training: {steps: 10, save_every: 5.5}
"""


def test_of_two_edits_of_one_place_the_first_is_made() -> None:
    source = Source("r.yaml", "a: wrong\nb: 1")
    place, other = Span(source, 1, 4, 1, 9), Span(source, 2, 4, 2, 5)
    given = [
        Diagnostic("E003 unknown-key", "m", span, edit=edit)
        for span, edit in ((other, "2"), (place, "right"), (replace(place, column=6), "else"))
    ]
    edits = curable(given, source)
    assert [each.edit for each in edits] == ["right", "2"]
    assert cured(source, edits) == "a: right\nb: 2"


def test_a_recipe_is_corrected_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fraction of a step has no single answer: it stays, and is reported."""
    path = tmp_path / "mine.yaml"
    path.write_text(WRONG)
    assert console.policysmith(["check", str(path), "--fix"]) == console.INVALID_RECIPE
    assert path.read_text() == RIGHT
    written = capsys.readouterr().err
    assert f"fixed {path}:7:21: mpl -> mlp" in written
    assert "the recipe has 1 mistake\n" in written
    assert [file.name for file in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_base_and_the_command_line_are_not_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.yaml").write_text(WRONG)
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: base.yaml\nname: other\n")
    assert (
        console.policysmith(["check", str(mine), "--fix", "-o", "training.step=3"]) == console.INVALID_RECIPE
    )
    assert (tmp_path / "base.yaml").read_text() == WRONG
    assert "fixed" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["training: {steps: 2, keep: true}", "policy: {freeze: true}", "data: {episodes: [1.5]}"]
)
def test_no_cure_leads_to_the_next_error(line: str) -> None:
    """A boolean in quotes or in brackets would be wrong again."""
    document = parse(f"base: act.yaml\n{line}\n", directory=RECIPES / "tiny")
    (finding,) = check(resolved(composed(document)))
    assert finding.edit is None
    assert "write" not in finding.label
    assert "quotes" not in finding.label


def run(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(WRONG)
    assert console.policysmith(["check", str(path), "--format", form]) == console.INVALID_RECIPE
    captured = capsys.readouterr()
    assert not captured.err
    return captured.out


def test_sarif(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = json.loads(run("sarif", tmp_path, capsys))
    (one,) = log["runs"]
    rules = [rule["id"] for rule in one["tool"]["driver"]["rules"]]
    assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in one["results"])
    result = next(result for result in one["results"] if result["ruleId"] == "E006")
    assert result["level"] == "error"
    region = {"startLine": 7, "startColumn": 21, "endLine": 7, "endColumn": 24}
    assert result["locations"][0]["physicalLocation"]["region"] == region
    (change,) = result["fixes"][0]["artifactChanges"][0]["replacements"]
    assert change == {"deletedRegion": region, "insertedContent": {"text": "mlp"}}


def test_annotations_of_github(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, *rest = run("github", tmp_path, capsys).splitlines()
    place = f"file={tmp_path}/mine.yaml,title=E005 wrong-type,line=3,col=35,endLine=3,endColumn=38"
    assert first == f"::error {place}::`data.horizon` must be an integer, found the number 8.0; write 8"
    assert len(rest) == 5
