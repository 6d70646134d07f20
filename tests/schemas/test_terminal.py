"""Names, paths and values reach the terminal as data; reports on huge or broken recipes are short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from policysmith.builder.display import PlainConsole
from policysmith.schemas import console
from policysmith.schemas.check import check as judge
from policysmith.schemas.errors import RecipeError
from policysmith.schemas.terminal import printable
from policysmith.schemas.yaml import parser
from policysmith.schemas.yaml.document import parse, read
from policysmith.schemas.yaml.nodes import MAX_BYTES

RECIPE = """recipe: 1
name: small
data: {path: datasets/drawer_open, horizon: 4}
policy:
  backbones: {proprio: {type: state}}
  head: {type: mlp}
training: {steps: 1}
"""


def check(text: str | bytes, folder: Path, *flags: str) -> int:
    recipe = folder / "recipe.yaml"
    recipe.write_bytes(text if isinstance(text, bytes) else text.encode())
    return console.policysmith(["check", str(recipe), *flags])


@pytest.mark.parametrize(
    "text",
    [
        RECIPE + '"\\e[31mkey": 1\n',
        RECIPE.replace("mlp", '"\\e]0;title\\a"'),
        RECIPE.replace("name: small", 'name: "\\u202Eevil"'),
        RECIPE.replace("horizon: 4", 'horizon: "\\e[2J"'),
        RECIPE.replace("small", '"a\\0b"'),
        RECIPE.replace("mlp", '"a\\0b"'),
        RECIPE.replace("{type: state}", '{type: state, reads: ["\\e[5m"]}'),
    ],
)
def test_no_value_of_a_recipe_steers_the_terminal(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(text, tmp_path) == console.INVALID_RECIPE
    written = capsys.readouterr().err
    assert written == printable(written)
    assert written.strip()


def test_paths_of_recipes_and_overrides_are_printed_as_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "\x1b[31m"
    folder.mkdir()
    assert check(RECIPE, folder, "-o", "data.\x1b[31mhorizon=1") == console.INVALID_RECIPE
    assert "\x1b" not in capsys.readouterr().err


def test_the_console_interprets_neither_markup_nor_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    PlainConsole().print("[bold]x[/b] :smile: \x1b[31m")
    assert capsys.readouterr().out == "[bold]x[/b] :smile: \ufffd[31m\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (RECIPE + "#" * MAX_BYTES, "E009"),
        (RECIPE + "".join(f"k{number}: 1\n" for number in range(5_000)), "E003"),
        (RECIPE.replace("small", "a" * 500_000), "E007"),
        (RECIPE.replace("mlp", "m" * 500_000), "E006"),
        (RECIPE + "k" * 1_000 + ": 1\n", "E003"),
        (RECIPE.replace("{type: mlp}", "{type: mlp, hidden: [" + "1, " * 5_000 + "]}"), "E007"),
        (RECIPE.replace("{type: state}", "{type: vit, depth: 100000}"), "E007"),
    ],
    ids=["file", "keys", "name", "type", "key", "list", "depth"],
)
def test_what_is_huge_is_refused_in_few_words(
    text: str, code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(text, tmp_path) == console.INVALID_RECIPE
    written = capsys.readouterr().err
    assert f"error[{code}" in written
    assert max(map(len, written.splitlines())) < 2_500
    assert written.count("error[") <= 100


def test_text_and_values_are_bounded_as_files_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="larger than 1 MB"):
        parse(RECIPE + "#" * MAX_BYTES)
    monkeypatch.setattr(parser, "MAX_NODES", 1_000)
    parse("a: [" + "1," * 997 + "]")
    with pytest.raises(RecipeError, match="more than 1,000 keys and values"):
        parse("a: [" + "1," * 1_001 + "]")


def test_a_caret_far_to_the_right_stands_below_its_value() -> None:
    line = "training: {steps: 1, log_every: 1, " + " " * 300 + "keeep: 2}"
    (finding,) = judge(parse(RECIPE.replace("training: {steps: 1}", line)))
    excerpt, carets = finding.render().splitlines()[3:5]
    at = excerpt.index("keeep")
    assert carets[at : at + 5] == "^^^^^"
    assert len(excerpt) < 200


def test_a_recipe_that_never_ends_is_refused() -> None:
    with pytest.raises(RecipeError, match="larger than 1 MB"):
        read(Path("/dev/zero"))
    with pytest.raises(RecipeError, match="NUL"):
        read(Path("a\0b"))


def run(
    words: str, folder: Path, stdout: int | None = None, **env: str
) -> subprocess.CompletedProcess[bytes]:
    (folder / "recipe.yaml").write_text(RECIPE + '"key \u2192": 1\n', encoding="utf-8")
    program = "import sys; from policysmith.schemas.console import policysmith; sys.exit(policysmith())"
    return subprocess.run(
        [sys.executable, "-c", program, *words.split()],
        cwd=folder,
        env={**os.environ, **env},
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
    )


def test_a_reader_that_leaves_early_ends_the_program_quietly(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run("check recipe.yaml --format json", tmp_path, stdout=writer)
    os.close(writer)
    assert done.returncode == console.NO_READER
    assert done.stderr == b""


def test_a_file_that_does_not_exist_has_no_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert console.policysmith(["check", str(tmp_path / "gone.yaml")]) == console.INVALID_RECIPE
    written = capsys.readouterr().err
    assert "error[E009" in written
    assert "mistake" not in written


def test_characters_that_the_terminal_lacks_are_written_as_escapes(tmp_path: Path) -> None:
    done = run("check recipe.yaml", tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == console.INVALID_RECIPE
    assert b"key \\u2192" in done.stderr
