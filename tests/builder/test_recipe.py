"""Loading recipes: both stages, imports, parts from elsewhere, resolving."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from pydantic import Field, model_validator

from policysmith.builder.recipe.load import load_recipe
from policysmith.builder.recipe.loaded import LoadedRecipe
from policysmith.components import registry
from policysmith.components.base import ActionHead
from policysmith.components.registry import REGISTRIES
from policysmith.schemas.errors import RecipeError, SpecError
from policysmith.schemas.part import HeadConfig
from policysmith.schemas.recipe import CustomPolicySection, Recipe
from policysmith.schemas.yaml.document import parse

TEXT = """\
recipe: 1
name: small
data: {path: datasets/x}
policy:
  backbones:
    proprio: {type: mlp, hidden: [32]}
  head:
    type: mlp
    hidden: [64, 64]
transforms:
  - {type: normalize, modes: {observation.state: q99}}
training:
  steps: 10
"""
RECIPE = parse(TEXT).value


def messages(source: Any, **options: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, **options)
    return [found.message for found in caught.value.diagnostics]


def test_parts_come_as_class_and_config(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(TEXT)
    loaded = load_recipe(path)
    assert isinstance(loaded, LoadedRecipe)
    assert isinstance(loaded.sections, Recipe)
    assert loaded.directory == tmp_path
    assert loaded.head is not None
    for (part, config), (kind, name) in (
        (loaded.head, ("heads", "mlp")),
        (loaded.backbones["proprio"], ("backbones", "mlp")),
        (loaded.transforms[0], ("transforms", "normalize")),
        (loaded.collator, ("collators", "default")),
    ):
        assert part is REGISTRIES[kind].get(name)
        assert isinstance(config, part.Config)
    assert load_recipe(RECIPE).directory == Path()


def test_resolved_has_every_default_and_loads_to_itself() -> None:
    loaded = load_recipe(RECIPE)
    resolved = loaded.resolved()
    assert resolved["training"]["optimizer"]["betas"] == [0.9, 0.999]
    assert resolved["collator"] == {"type": "default"}
    assert resolved["policy"]["head"].keys() == loaded.head[1].model_dump().keys()  # type: ignore[index]
    again = load_recipe(json.loads(json.dumps(resolved)))
    assert again.resolved() == resolved
    assert again.sha256 == loaded.sha256
    assert again.sections.training == loaded.sections.training


def test_the_digest_depends_on_meaning_alone() -> None:
    digest = load_recipe(RECIPE).sha256
    assert load_recipe(dict(reversed(RECIPE.items()))).sha256 == digest
    assert load_recipe(RECIPE, overrides=["training.batch_size=32"]).sha256 == digest
    assert load_recipe(RECIPE, overrides=["training.batch_size=33"]).sha256 != digest


def test_overrides() -> None:
    assert load_recipe(RECIPE, overrides=["training.steps=3"]).sections.training.steps == 3
    assert load_recipe(RECIPE, overrides={"training": {"steps": 4}}).sections.training.steps == 4
    assert messages(RECIPE, overrides={"training.stps": 4}) == ["`training` has no key `stps`"]


def test_a_hand_written_policy() -> None:
    loaded = load_recipe({**RECIPE, "policy": {"type": "mine", "hidden_dim": 256}})
    assert isinstance(loaded.sections.policy, CustomPolicySection)
    assert loaded.sections.policy.model_extra == {"hidden_dim": 256}
    assert (loaded.head, loaded.backbones) == (None, {})
    resolved = loaded.resolved()
    assert resolved["policy"] == {
        "type": "mine",
        "init": None,
        "execute": None,
        "ensemble": None,
        "hidden_dim": 256,
    }
    assert load_recipe(resolved).resolved() == resolved


# Imports


def with_imports(directory: Path, *entries: str) -> Path:
    path = directory / "r.yaml"
    path.write_text(TEXT + f"imports: {json.dumps(entries)}\n")
    return path


def test_imports_need_leave(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text("raise AssertionError('this must not run')")
    (found,) = messages(with_imports(tmp_path, "parts.py"))
    assert "recipes run no code" in found


def test_imports_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts.py").write_text("import sys\nsys.runs = getattr(sys, 'runs', 0) + 1\n")
    (tmp_path / "some_parts.py").write_text("import sys\nsys.runs = getattr(sys, 'runs', 0) + 10\n")
    monkeypatch.setattr(sys, "runs", 0, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = with_imports(tmp_path, "parts.py", "some_parts")
    for _ in range(2):
        load_recipe(path, allow_imports=True)
    assert sys.runs == 11  # type: ignore[attr-defined]


def test_imports_that_fail_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = = 1")
    path = with_imports(tmp_path, "broken.py", "gone.py")
    first, second = messages(path, allow_imports=True)
    assert first.startswith("importing `broken.py` failed: SyntaxError")
    assert "gone.py does not exist" in second
    assert not any(name.startswith("policysmith_imports") and "broken" in name for name in sys.modules)
    (tmp_path / "broken.py").write_text("x = 1")
    assert len(messages(path, allow_imports=True)) == 1


def test_imports_are_named_once(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text("")
    (found,) = messages(with_imports(tmp_path, "parts.py", "parts.py"), allow_imports=True)
    assert found == "`imports` must not contain duplicates"


# Parts that the shipped schema does not know


class FancyHead(ActionHead):
    """Stands for a head of another distribution."""

    accepts = ()
    specs = example = loss = sample = None  # type: ignore[assignment]

    class Config(HeadConfig):
        type: Literal["fancy"]
        layers: int = Field(default=2, ge=1)
        """Number of layers."""
        width: int = 64
        """Width."""

        @model_validator(mode="after")
        def _even(self) -> FancyHead.Config:
            if self.width % 2:
                raise ValueError("the width must be even")
            return self


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("fancy_heads")
    module.FancyHead = FancyHead  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fancy_heads", module)
    points = EntryPoints([EntryPoint("fancy", "fancy_heads:FancyHead", "policysmith.heads")])

    def entry_points(**wanted: str) -> EntryPoints:
        return points.select(**wanted)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    monkeypatch.setattr(registry, "entry_points", entry_points)


def fancy(**options: Any) -> dict[str, Any]:
    return {**RECIPE, "policy": {**RECIPE["policy"], "head": {"type": "fancy", **options}}}


@pytest.mark.usefixtures("plugin")
def test_parts_of_other_distributions_are_judged_like_our_own() -> None:
    loaded = load_recipe(fancy(layers=3))
    assert loaded.head is not None
    assert loaded.head[0] is FancyHead
    assert loaded.resolved()["policy"]["head"] == {"type": "fancy", "reads": None, "layers": 3, "width": 64}
    assert messages(fancy(layer=3, width="8")) == [
        "`policy.head` has no key `layer`",
        '`policy.head.width` must be an integer, found the string "8"',
    ]


@pytest.mark.usefixtures("plugin")
def test_what_a_schema_cannot_say_is_said_by_the_model() -> None:
    assert messages(fancy(width=7)) == ["`policy.head`: the width must be even"]


@pytest.mark.usefixtures("plugin")
def test_both_stages_are_heard_together() -> None:
    assert messages({**fancy(width=7), "training": {"steps": 0}}) == [
        "`training.steps` must be at least 1, found 0",
        "`policy.head`: the width must be even",
    ]


def test_a_part_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ImportError("No module named 'timm'")

    monkeypatch.setattr(REGISTRIES["heads"], "get", fail)
    assert messages(RECIPE) == ["the part `heads.mlp` cannot be imported: No module named 'timm'"]


# What the wiring uses


def rendered(path: tuple[str | int, ...], error: SpecError | str, **options: Any) -> list[str]:
    return load_recipe(parse(TEXT, "r.yaml")).diagnostic(path, error, **options).render().splitlines()


def test_a_spec_error_is_located_at_the_option_it_names() -> None:
    error = SpecError("expects 5 values", field="hidden.1", label="5 here", help="do this")
    lines = rendered(
        ("policy", "head"), error, related=[(("policy", "backbones", "proprio"), "3 here")], notes=["so"]
    )
    assert lines[0] == "error[E020 bad-wiring]: `policy.head`: expects 5 values"
    assert lines[3:5] == ["9 |     hidden: [64, 64]", "  |                  ^^ 5 here"]
    assert lines[7:] == [
        "6 |     proprio: {type: mlp, hidden: [32]}",
        "  |              ------------------------- 3 here",
        "  = note: so",
        "  = help: do this",
    ]


@pytest.mark.parametrize(
    ("path", "field", "token"),
    [
        (("policy", "head"), None, "head"),
        (("policy", "head"), "reads.0", "head"),
        (("policy", "head"), "hidden", "[64, 64]"),
        (("transforms", 0), "modes.observation.state", "q99"),
        (("transforms", 0), "modes.action", "{observation.state: q99}"),
        (("collator",), "keys", ""),
        (("policy", "backbones", "gone"), "x", "backbones"),
    ],
)
def test_options_are_found_or_their_nearest_key(
    path: tuple[str | int, ...], field: str | None, token: str
) -> None:
    loaded = load_recipe(parse(TEXT, "r.yaml"))
    found = loaded.diagnostic(path, SpecError("does not fit", field=field))
    assert found.span.text == token


def test_findings_about_keys_stand_under_the_key() -> None:
    found = load_recipe(parse(TEXT, "r.yaml")).diagnostic(
        ("training", "steps"), "no", code="E003 unknown-key"
    )
    assert found.span.text == "steps"


def test_findings_of_the_data_stand_under_the_value() -> None:
    found = load_recipe(parse(TEXT, "r.yaml")).diagnostic(
        ("data", "path"), "no such dataset", code="E023 bad-dataset"
    )
    assert found.span.text == "datasets/x"
    assert found.message == "no such dataset"


def test_a_finding_about_an_option_left_out_names_its_default(tiny: dict[str, Any]) -> None:
    loaded = load_recipe(tiny)
    found = loaded.diagnostic(("policy", "head"), SpecError("does not fit", field="loss"))
    assert found.notes == ('`policy.head.loss` is not set; its default is "l1"',)
    assert not loaded.diagnostic(("policy", "head"), SpecError("does not fit", field="hidden")).notes
    assert not loaded.diagnostic(("policy", "head"), SpecError("does not fit")).notes
