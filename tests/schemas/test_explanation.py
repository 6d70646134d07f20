"""`policysmith explain` and `list`: parts, options, sections, error codes, and topics that do not exist."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from policysmith.builder import Builder
from policysmith.components.registry import REGISTRIES
from policysmith.schemas import console
from policysmith.schemas.errors import RecipeError
from policysmith.schemas.questions.codes import CODES, PAGES

ACT = Path(__file__).parents[2] / "recipes" / "tiny" / "act.yaml"


@pytest.mark.parametrize(
    ("topic", "words"),
    [
        ("policy", ["Network.", "freeze", "backbones: mapping of names to backbone (required)"]),
        (
            "policy.execute",
            ["Actions executed from each chunk", "type: integer >= 1 or null", "default: null"],
        ),
        ("policy.backbones.vision", ["backbones:", "vit"]),
        ("training.optimizer", ["AdamW", "weight_decay: number >= 0 (default 0.01)", "Norms, biases"]),
        ("training.optimizer.groups.lr_scale", ["Factor on the learning rate"]),
        ("training.optimizer.groups[0].lr_scale", ["Factor on the learning rate"]),
        ("backbones.vit", ["Vision Transformer", "patch_size: integer >= 1", "example:"]),
        ("heads.mlp.loss", ["type: l1 | l2 | huber", 'default: "l1"']),
        ("heads.flow_matching", ["x_s = s eps + (1 - s) a", "as in GR00T"]),
        ("heads", ["  flow_matching  Flow matching"]),
        ("E005", ["E005 wrong-type", "steps: many"]),
        ("unknown-key", ["E003 unknown-key"]),
    ],
)
def test_a_topic_has_its_type_range_default_and_meaning(
    topic: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert console.policysmith(["explain", topic]) == 0
    written = capsys.readouterr().out
    assert not [word for word in words if word not in written], written


@pytest.mark.parametrize(
    ("topic", "cure"),
    [
        ("policy.nonsense", "`policy` has no option `nonsense`; known: backbones"),
        ("policy.freze", "did you mean `freeze`?"),
        ("data.path.foo", "`data.path` has no option `foo`; it has no options"),
        ("nonsense", "there is no topic `nonsense`; known: base"),
        ("optimizer", "did you mean `training.optimizer`?"),
        ("mlp", "did you mean `backbones.mlp`, `heads.mlp`, `networks.mlp`?"),
        ("backbones.vt", "did you mean `vit`?"),
        ("backbones.vit.patch", "did you mean `patch_size`?"),
    ],
)
def test_a_topic_that_does_not_exist_is_answered_by_those_that_do(
    topic: str, cure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert console.policysmith(["explain", topic]) == console.BUILD_FAILED
    assert cure in capsys.readouterr().err


def test_every_part_and_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, registry in REGISTRIES.items():
        assert console.policysmith(["list", kind]) == 0
        listed = capsys.readouterr().out
        for name in registry.names():
            assert f"  {name} " in listed
            assert console.policysmith(["explain", f"{kind}.{name}"]) == 0
            written = capsys.readouterr().out
            for option in registry.get(name).Config.model_fields:
                assert f"\n{option}: " in written
            assert f"type: {name}" in written.partition("example:")[2]


def test_every_code_has_a_page() -> None:
    assert tuple(PAGES) == CODES


@pytest.mark.parametrize("code", [code for code in CODES if code.startswith("E")])
def test_the_example_of_a_code_has_the_error(code: str, tmp_path: Path) -> None:
    example = PAGES[code].example  # type: ignore[index]
    (tmp_path / "example.yaml").write_text("" if example.startswith("-o ") else example)
    path = tmp_path / "mine.yaml"
    own = "" if example.startswith("-o ") else example + "\n"
    path.write_text(own if own.startswith("base:") else f"base: {ACT}\n{own}")
    builder = Builder.from_recipe(path, allow_imports=code.startswith("E012"))
    with pytest.raises(RecipeError) as caught:
        (builder.override(example.removeprefix("-o ")) if not own else builder).check()
    assert code in {diagnostic.code for diagnostic in caught.value.diagnostics}


OF_OTHER_DATA = {"W007 base-differs", "W008 frame-rates", "W009 dropped-column"}
"""Warnings tested beside the datasets and policies that have them."""


@pytest.mark.parametrize(
    "code", [code for code in CODES if code.startswith("W") and code not in OF_OTHER_DATA]
)
def test_the_example_of_a_warning_has_it_and_is_silenced(code: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {ACT}\n{PAGES[code].example}\n")  # type: ignore[index]
    assert code not in {warning.code for warning in Builder.from_recipe(ACT).warnings}
    builder = Builder.from_recipe(path)
    found = [warning for warning in builder.warnings if warning.code == code]
    assert found
    assert all(warning.severity == "warning" and warning.span.line for warning in found)
    assert all(warning.line in builder.notes for warning in found)
    quiet = builder.override({"silence": [code[:4]]})
    assert code not in {warning.code for warning in quiet.warnings}


LIGHT = """
import sys
from policysmith.schemas.console import policysmith
code = policysmith(sys.argv[1:])
assert not {"torch", "transformers", "pydantic", "numpy"} & sys.modules.keys()
sys.exit(code)
"""


@pytest.mark.parametrize(
    "words", ["list", "explain heads.mlp", f"render {ACT} --origins", f"diff {ACT} {ACT}"]
)
def test_a_question_about_the_language_imports_no_torch(words: str) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, *words.split()], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
