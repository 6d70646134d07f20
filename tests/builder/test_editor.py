"""The JSON Schema in yaml-language-server, as an editor uses it."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policysmith.components.registry import REGISTRIES
from policysmith.schemas import console
from policysmith.schemas.json_schema import SCHEMA_FILE, SchemaTree, nullable, shipped_schema

from .language_server import VERSION, Document, Server, install, serving

RECIPES = Path(__file__).parents[2] / "recipes"
ALL = [path for path in sorted(RECIPES.rglob("*.yaml")) if "datasets" not in path.parts]
PLACES = {
    "backbones": "policy:\n  backbones:\n    part:\n      {}\n",
    "necks": "policy:\n  necks:\n    part:\n      {}\n",
    "heads": "policy:\n  head:\n      {}\n",
    "networks": "policy:\n  head:\n    type: diffusion\n    network:\n      {}\n",
    "transforms": "transforms:\n    -\n      {}\n",
    "collators": "collator:\n      {}\n",
}
TREE = SchemaTree(shipped_schema())
PARTS = [(kind, name) for kind in PLACES for name in TREE.types(kind)]
MOST_SECONDS = 0.3


@pytest.fixture(scope="module")
def server(pytestconfig: pytest.Config) -> Iterator[Server]:
    assert pytestconfig.cache is not None
    program = install(pytestconfig.cache.mkdir(f"yaml-language-server-{VERSION}"))
    with serving(program, SCHEMA_FILE) as started:
        yield started


def in_place(server: Server, kind: str, *lines: str) -> tuple[Document, int]:
    """Open a recipe with a part of these lines; return it and the number of the part's first line."""
    before, _, after = PLACES[kind].partition("{}")
    return server.open(before + "\n      ".join(lines) + after), before.count("\n") + 1


def options(kind: str, name: str) -> dict[str, Any]:
    return dict(TREE.expand({"$ref": f"#/$defs/{kind}.{name}"}, {"type": name})["properties"])


def plain(markdown: str) -> str:
    """Return the first paragraph without what the server escapes."""
    return markdown.removeprefix("#### policysmith recipe\n\n").partition("\n\n")[0].replace("\\", "")


def test_no_default_is_null() -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            assert value.get("default", ...) is not None, value
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(inner)

    check(shipped_schema())


def test_the_schema_is_small_enough_for_other_tools() -> None:
    assert SCHEMA_FILE.stat().st_size < 500_000


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_the_text_that_editors_show_names_limits_and_default(kind: str, name: str) -> None:
    for option, schema in options(kind, name).items():
        text = schema.get("markdownDescription", "")
        assert text.startswith(schema["description"]), option
        for limit in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
            assert limit not in schema or f"{schema[limit]:g}" in text
        for choice in schema.get("enum", ()):
            assert str(choice) in text or choice is None
        if "default" in schema or nullable(schema):
            assert f"default `{json.dumps(schema.get('default'))}`" in text


def test_parts_of_a_file_join_the_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = str(shutil.copy(Path(__file__).with_name("own_part.py"), tmp_path))
    assert console.policysmith(["schema", "--with-plugins", own]) == console.OK
    schema = json.loads(capsys.readouterr().out)
    assert "mean_colour" in schema["$defs"]["backbones"]["properties"]["type"]["enum"]
    assert "width" in schema["$defs"]["backbones.mean_colour"]["properties"]
    assert console.policysmith(["schema"]) == console.OK
    assert json.loads(capsys.readouterr().out) == shipped_schema()
    for words, said in (
        (["--with-plugins", "missing.py"], "importing missing.py failed"),
        (["--write", "--with-plugins"], "writes the shipped schema"),
        (["--out", "/dev/null/x"], "/dev/null/x"),
    ):
        assert console.policysmith(["schema", *words]) in (console.BUILD_FAILED, console.REFUSED)
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_every_section_is_offered_at_the_top(server: Server) -> None:
    for text in ("\n", "recipe: 1\n\ntraining: {steps: 1}\n"):
        line = 1 if text == "\n" else 2
        found, _ = server.open(text).complete(line, 0)
        assert found.keys() == shipped_schema()["properties"].keys() - set(text.replace(":", " ").split())


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLACES)
def test_every_part_of_a_kind_is_offered(server: Server, kind: str) -> None:
    document, line = in_place(server, kind, "type: ")
    found, _ = document.complete(line, len("      type: "))
    assert set(TREE.types(kind)) == set(REGISTRIES[kind].shipped)
    assert found.keys() == set(TREE.types(kind))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_the_options_of_a_part_are_offered_and_explained(server: Server, kind: str, name: str) -> None:
    wanted = options(kind, name)
    document, line = in_place(server, kind, f"type: {name}", "")
    found, seconds = document.complete(line + 1, 6)
    assert found.keys() - {f"{kind}.{name}"} == wanted.keys() - {"type"}  # a snippet of what it needs
    times = [seconds]
    names = sorted(wanted.keys() - {"type"})
    document, line = in_place(server, kind, f"type: {name}", *(f"{option}: " for option in names))
    for number, option in enumerate(names, start=1):
        text, seconds = document.hover(line + number, 8)
        times.append(seconds)
        if wanted[option].keys() & {
            "$ref",
            "allOf",
            "anyOf",
        }:  # the server describes the branch that is written
            continue
        assert plain(wanted[option]["description"]) in plain(text)
        if "default" in wanted[option] or nullable(wanted[option]):
            assert "default `" in text, option
    assert statistics.median(times) < MOST_SECONDS


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_a_misspelled_option_is_underlined(server: Server, kind: str, name: str) -> None:
    document, line = in_place(server, kind, f"type: {name}", "typpo: 1")
    place = {"start": {"line": line + 1, "character": 6}, "end": {"line": line + 1, "character": 11}}
    (found,) = [each for each in document.diagnostics if "typpo" in each["message"]]
    assert found["range"] == place


@pytest.mark.slow
@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(RECIPES)))
def test_nothing_is_underlined_in_a_valid_recipe(server: Server, path: Path) -> None:
    assert server.open(path.read_text()).diagnostics == []


@pytest.mark.slow
def test_parts_of_a_file_are_offered(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = str(Path(__file__).with_name("own_part.py"))
    assert console.policysmith(["schema", "--with-plugins", own]) == console.OK
    schema = tmp_path / "recipe.json"
    schema.write_text(capsys.readouterr().out)
    with serving(Path(server.process.args[1]), schema) as other:  # type: ignore[index]
        document, line = in_place(other, "backbones", "type: mean_colour", "")
        found, _ = document.complete(line + 1, 6)
        assert {"width", "reads"} <= found.keys()
