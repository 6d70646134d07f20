"""Every page here shows a recipe and the exact report it earns.

A page is Markdown. Each `##` section holds fenced blocks:

- `yaml`: the recipe, written to `recipe.yaml`; a second word names another file (`yaml other.yaml`, `python part.py`)
- `console`: the command after `$ `; by default `policysmith check recipe.yaml`
- `errors`: exactly what the command writes to stderr

`recipes/` and `datasets/`, the bundled ones, lie beside the recipe. `UPDATE_PAGES=1 pytest tests/diagnostics` rewrites the
`errors` blocks: read the difference before you commit it.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from policysmith.schemas import console

HERE = Path(__file__).parent
RECIPES = HERE.parents[1] / "recipes"
COMMANDS = {"policysmith": console.policysmith, "build-and-train": console.build_and_train}
BLOCK = re.compile(r"^(`{3,})(\w+)(?: (\S+))?\n(.*?)^\1$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Section:
    page: Path
    title: str
    files: dict[str, str]
    command: str
    errors: str

    def __str__(self) -> str:
        return f"{self.page.stem}: {self.title}"


def sections(page: Path) -> list[Section]:
    found = []
    for part in re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        files, command, errors = {}, "policysmith check recipe.yaml", ""
        for _, kind, name, text in BLOCK.findall(part):
            if kind == "console":
                command = text.strip().removeprefix("$ ")
            elif kind == "errors":
                errors = text
            else:
                files[name or "recipe.yaml"] = text
        found.append(Section(page, part.partition("\n")[0], files, command, errors))
    return found


ALL = [section for page in sorted(HERE.glob("*.md")) for section in sections(page)]


@pytest.mark.parametrize("section", ALL, ids=str)
def test_report(
    section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert section.files
    assert section.errors or os.environ.get("UPDATE_PAGES"), "the section has no `errors` block"
    for name, text in section.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "recipes").symlink_to(RECIPES)
    (tmp_path / "datasets").symlink_to(RECIPES / "datasets")
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(section.command)
    code = COMMANDS[program](arguments)
    written = capsys.readouterr().err.replace(str(tmp_path), "<directory>")
    if os.environ.get("UPDATE_PAGES"):
        _update(section, written)
    else:
        assert written.rstrip() == section.errors.rstrip()
    assert code == console.INVALID_RECIPE


def test_every_page_has_a_section() -> None:
    assert {section.page for section in ALL} == set(HERE.glob("*.md"))


def _update(section: Section, written: str) -> None:
    text = section.page.read_text(encoding="utf-8")
    start = text.index(f"## {section.title}\n")
    end = text.find("\n## ", start)
    end = len(text) if end < 0 else end
    body = re.sub(r"^```errors\n.*?^```$", "", text[start:end], flags=re.MULTILINE | re.DOTALL).rstrip()
    body += f"\n\n```errors\n{written.rstrip()}\n```\n"
    section.page.write_text(text[:start] + body + text[end:], encoding="utf-8")
