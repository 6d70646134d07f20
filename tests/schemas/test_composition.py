"""Recipes composed of bases, variables and environment variables."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from policysmith.schemas import console
from policysmith.schemas.composition import composed, resolved
from policysmith.schemas.errors import RecipeError
from policysmith.schemas.origins import origin_of, origins
from policysmith.schemas.overrides import apply, apply_mapping
from policysmith.schemas.yaml.document import Document, from_mapping, read

ROOT = Path(__file__).parents[2]
ACT = ROOT / "recipes" / "tiny" / "act.yaml"


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Path]:
    """`files(**texts)`: write recipes, and return the path of the last one."""

    def write(**texts: str) -> Path:
        for name, text in texts.items():
            path = tmp_path / f"{name}.yaml"
            path.write_text(text)
        return path

    return write


def value(path: Path, *overrides: str) -> dict[str, Any]:
    return resolved(apply(composed(read(path)), overrides)).value


def finding(document: Callable[[], Any]) -> Any:
    with pytest.raises(RecipeError) as caught:
        document()
    (found,) = caught.value.diagnostics
    return found


def test_mappings_merge_lists_replace_and_the_recipe_wins(files: Callable[..., Path]) -> None:
    path = files(
        low="a: {x: 1, y: [1, 2], z: {u: 1}}\nb: 1\n",
        high="a: {x: 2}\nc: [3]\n",
        mine="base: [low.yaml, high.yaml]\na: {y: [9], z: {v: 2}}\n",
    )
    assert value(path) == {"a": {"x": 2, "y": [9], "z": {"u": 1, "v": 2}}, "b": 1, "c": [3]}


def test_a_mapping_of_another_type_replaces(files: Callable[..., Path]) -> None:
    path = files(
        low="head: {type: act, width: 8}\nneck: {type: film, width: 8}\n",
        mine="base: low.yaml\nhead: {type: mlp}\nneck: {type: film, depth: 2}\n",
    )
    assert value(path) == {"head": {"type": "mlp"}, "neck": {"type": "film", "width": 8, "depth": 2}}


def test_bases_have_bases_and_places_name_the_file_that_sets_a_value(files: Callable[..., Path]) -> None:
    path = files(one="name: one\nx: 1\n", two="base: one.yaml\ny: 2\n", three="base: two.yaml\nname: three\n")
    document = apply(composed(read(path)), ["z=3"])
    found = {where: place.rpartition("/")[2] for where, place in origins(resolved(document)).items()}
    assert found == {
        "name": "three.yaml:2:7",
        "x": "one.yaml:2:4",
        "y": "two.yaml:2:4",
        "z": "-o z=3",
    }


def test_origins_name_environment_override_and_default(
    files: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WIDTH", "8")
    path = files(
        mine="vars: {w: '${env:WIDTH}', n: 3}\na: '${vars.w}'\nb: {}\nc: [1, '${vars.n}', 3]\nd: [1, 2]\n"
        "e: '${env:OTHER:-5}'\n"
    )
    found = origins(resolved(apply(composed(read(path)), ["d.1=7", "f={g: [1, 2]}"])), portable=True)
    assert found == {
        "a": "environment variable WIDTH",
        "b": "mine.yaml:3:4",
        "c[0]": "mine.yaml:4:5",
        "c[1]": "mine.yaml:1:30",
        "c[2]": "mine.yaml:4:21",
        "d[0]": "mine.yaml:5:5",
        "d[1]": "-o d.1=7",
        "e": "mine.yaml:6:4",
        "f.g": "-o f={g: [1, 2]}",
    }
    assert origin_of(("f",), found) == origin_of(("f", "g", 0), found) == "-o f={g: [1, 2]}"
    assert origin_of(("fg",), found) == origin_of(("f", "h"), found) == "default"


def test_a_finding_in_a_base_names_the_recipe_above(
    files: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STEPS", "many")
    path = files(
        low=f"base: {ACT}\ntraining: {{steps: '${{env:STEPS}}', batch_sizes: 4}}\n",
        mine="base: low.yaml\nname: mine\n",
    )
    assert console.policysmith(["check", str(path)]) == console.INVALID_RECIPE
    written = capsys.readouterr().err
    assert written.count(f"note: {path.with_name('low.yaml')} is a base of {path}:1:7") == 2
    assert ":: environment variable STEPS\n  | the value is set here" in written


def test_a_null_removes_what_the_schema_does_not_let_be_null(files: Callable[..., Path]) -> None:
    path = files(
        low="policy: {necks: {film: {type: film}, flat: {type: flatten}}}\nevaluation: {env: a}\n",
        mine="base: low.yaml\npolicy: {necks: {film: null}}\nevaluation: null\n",
    )
    assert value(path) == {"policy": {"necks": {"flat": {"type": "flatten"}}}, "evaluation": None}
    assert value(path, "policy.necks.flat=null")["policy"] == {"necks": {}}
    document = apply_mapping(composed(read(path)), {"policy.necks.flat": None})
    assert resolved(document).value["policy"] == {"necks": {}}


def test_a_null_is_kept_where_the_schema_does_not_know_the_option(files: Callable[..., Path]) -> None:
    path = files(
        mine="imports: [own.py]\npolicy: {head: {type: own_head, width: 8}, freeze: []}\nmeta: {note: x}\n"
        "training: {clip_norm: 1.0, steps: 2}\n"
    )
    found = value(path, "policy.head.width=null", "meta.note=null", "training.clip_norm=null")
    assert found["policy"]["head"] == {"type": "own_head", "width": None}
    assert found["meta"] == {"note": None}
    assert found["training"] == {"clip_norm": None, "steps": 2}


def test_an_override_removes_entries_and_items(files: Callable[..., Path]) -> None:
    path = files(mine="a: {b: {c: 1, d: 2}}\ntransforms: [{type: x}, {type: y}]\n")
    assert value(path, "~a.b.c", "~transforms.0") == {"a": {"b": {"d": 2}}, "transforms": [{"type": "y"}]}
    assert value(path, "transforms[1].type=z", "~a")["transforms"] == [{"type": "x"}, {"type": "z"}]
    assert finding(lambda: value(path, "~a.b.e")).message == "`a.b` has no key `e`"
    assert "list of 2 items" in finding(lambda: value(path, "~transforms.2")).message


def test_paths_of_a_base_are_relative_to_the_base(tmp_path: Path) -> None:
    (tmp_path / "lib" / "weights").mkdir(parents=True)
    (tmp_path / "lib" / "base.yaml").write_text(
        "data: {path: ../sets/a, sources: {r: {path: b}}}\nimports: [own.py, module]\n"
        "policy: {backbones: {v: {type: vit, pretrained: weights}, w: {type: vit, pretrained: org/name}}}\n"
    )
    (tmp_path / "mine.yaml").write_text("base: lib/base.yaml\n")
    (tmp_path / "lib" / "own.py").touch()
    found = value(tmp_path / "mine.yaml")
    assert found["data"] == {"path": "sets/a", "sources": {"r": {"path": "lib/b"}}}
    assert found["imports"] == ["lib/own.py", "module"]
    assert [part["pretrained"] for part in found["policy"]["backbones"].values()] == [
        "lib/weights",
        "org/name",
    ]


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nope.yaml", "there is no base recipe `nope.yaml`"),
        ("3", "`base` must be a path or a list of paths"),
        ("mine.yaml", "base recipes form a cycle: mine.yaml -> mine.yaml"),
        ("[{a: 1}]", "`base` must be a path or a list of paths"),
    ],
)
def test_a_bad_base_is_named_at_its_place(base: str, message: str, files: Callable[..., Path]) -> None:
    path = files(mine=f"name: x\nbase: {base}\n")
    found = finding(lambda: composed(composed(read(path))) if base != "mine.yaml" else looped(path))
    assert found.message == message
    assert found.span.line == 2


def looped(path: Path) -> Document:
    return composed(read(path))


def test_variables_keep_their_type_alone_and_become_text_within_text(files: Callable[..., Path]) -> None:
    path = files(
        mine="vars: {n: 3, list: [1, 2], deep: {on: true}, twice: '${vars.n}${vars.n}'}\n"
        "a: ${vars.n}\nb: ${vars.list}\nc: x${vars.n}-${vars.deep.on}\nd: $${vars.n}\ne: ${vars.twice}\n"
    )
    assert value(path) == {"a": 3, "b": [1, 2], "c": "x3-true", "d": "${vars.n}", "e": "33"}
    assert value(path, "vars.n=7")["a"] == 7


def test_environment_variables_are_values_and_have_defaults(
    files: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files(mine="a: ${env:STEPS:-5}\nb: /x/${env:WHO}\n")
    monkeypatch.setenv("WHO", "me")
    monkeypatch.delenv("STEPS", raising=False)
    assert value(path) == {"a": 5, "b": "/x/me"}
    monkeypatch.setenv("STEPS", "70")
    assert value(path)["a"] == 70
    monkeypatch.delenv("WHO")
    found = finding(lambda: value(path))
    assert found.code == "E013 bad-reference"
    assert (found.span.line, found.help) == (2, "set it, or write a default: `${env:WHO:-value}`")


@pytest.mark.parametrize(
    ("text", "message", "label"),
    [
        ("vars: {width: 1}\na: ${vars.widht}\n", "`vars` has no variable `widht`", "did you mean `width`?"),
        ("a: ${width}\n", "`${width}` is not a reference", ""),
        ("a: 'x${vars.b'\n", "a reference ends with `}`", ""),
        ("vars: {b: '${vars.c}', c: '${vars.b}'}\na: ${vars.b}\n", "variables refer to one another in a cycle: vars.b -> vars.c -> vars.b", ""),
        ("vars: {b: [1]}\na: x${vars.b}\n", "`${vars.b}` is not a single value; use it without other text", ""),
        ("vars: {b: 1, c: 2}\na: ${vars.b}\n", "nothing refers to the variable `c`", "not used"),
        ("vars: 3\n", "`vars` must be a mapping of names to values", ""),
    ],
)  # fmt: skip
def test_a_bad_reference_is_named_at_its_place(
    text: str, message: str, label: str, files: Callable[..., Path]
) -> None:
    path = files(mine=text)
    found = finding(lambda: value(path))
    assert (found.message, found.label if label else "") == (message, label)
    assert found.span.line >= 1


def test_references_that_double_are_refused_in_a_moment(files: Callable[..., Path]) -> None:
    names = [f"v{i}" for i in range(60)]
    doubled = ", ".join(f"{b}: '${{vars.{a}}}${{vars.{a}}}'" for a, b in pairwise(names))
    path = files(mine=f"vars: {{v0: xxxxxxxx, {doubled}}}\na: ${{vars.v59}}\n")
    with pytest.raises(RecipeError, match="too much text"):
        value(path)
    listed = ", ".join(f"{b}: ['${{vars.{a}}}', '${{vars.{a}}}']" for a, b in pairwise(names))
    path = files(mine=f"vars: {{v0: x, {listed}}}\na: ${{vars.v30}}\n")
    with pytest.raises(RecipeError, match=r"expand to more than|levels"):
        value(path)


def test_a_wrong_value_of_a_variable_names_both_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"base: {ACT}\nname: mine\nvars: {{steps: many}}\ntraining: {{steps: '${{vars.steps}}'}}\n"
    )
    assert console.policysmith(["check", str(path)]) == console.INVALID_RECIPE
    written = capsys.readouterr().err
    assert "`training.steps` must be an integer" in written
    assert "mine.yaml:4:19" in written
    assert "mine.yaml:3:15" in written


def test_a_recipe_from_stdin_over_a_base_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"base: {os.path.relpath(ACT)}\nname: from_stdin\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert console.policysmith(["check", "-"]) == console.OK, capsys.readouterr().err


def test_a_mapping_composes_as_a_file_does() -> None:
    document = from_mapping(
        {"base": str(ACT), "name": "mine", "vars": {"n": 2}, "training": {"steps": "${vars.n}"}}
    )
    found = resolved(composed(document)).value
    assert (found["name"], found["training"]["steps"]) == ("mine", 2)
    assert found["policy"] == read(ACT).value["policy"]
