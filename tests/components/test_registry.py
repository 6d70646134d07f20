"""`Registry.register`: what it takes, what it refuses, and that an import done twice is one part."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest

from policysmith.components import Backbone, BackboneConfig, HeadConfig
from policysmith.components.backbones.mlp import MlpBackbone
from policysmith.components.registry import BACKBONES, HEADS
from policysmith.schemas.errors import RegistryError

OWN = Path(__file__).parents[1] / "builder" / "own_part.py"


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKBONES, "_registered", {})


def imported(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


class SecondVit(MlpBackbone):
    class Config(MlpBackbone.Config):
        type: Literal["vit"]  # type: ignore[assignment]


def test_it_is_known_by_its_type() -> None:
    part = imported(OWN, "own_part").MeanColour
    assert BACKBONES.get("mean_colour") is part
    assert "mean_colour" in BACKBONES.names()
    assert "mean_colour" not in HEADS.names()


def test_a_file_imported_again_is_the_same_part() -> None:
    imported(OWN, "own_part")
    again = imported(OWN, "policysmith_imports_7_own_part").MeanColour
    assert BACKBONES.get("mean_colour") is again


def test_two_files_of_one_name_are_both_named(tmp_path: Path) -> None:
    shutil.copy(OWN, tmp_path / "other.py")
    imported(OWN, "own_part")
    with pytest.raises(RegistryError) as caught:
        imported(tmp_path / "other.py", "other")
    assert f"{OWN}:MeanColour and {tmp_path / 'other.py'}:MeanColour" in str(caught.value)


def test_a_part_of_ours_is_not_replaced() -> None:
    with pytest.raises(
        RegistryError, match=r"two parts are called backbones `vit`: .*backbones/vit\.py and "
    ):
        BACKBONES.register(SecondVit)


def without_type(body: dict[str, Any]) -> None:
    body["Config"] = type("Config", (BackboneConfig,), {"__module__": __name__})


def with_default_type(body: dict[str, Any]) -> None:
    class Config(BackboneConfig):
        type: Literal["late"] = "late"

    body["Config"] = Config


def with_config_of_another_kind(body: dict[str, Any]) -> None:
    class Config(HeadConfig):
        type: Literal["other"]

    body["Config"] = Config


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_type, "must declare `type: Literal"),
        (with_default_type, "must declare `type: Literal"),
        (with_config_of_another_kind, "must be a subclass of BackboneConfig"),
        (lambda body: body.update(Config=int), "must be a subclass of PartConfig"),
        (lambda body: body.pop("kind"), "lacks `kind`"),
        (lambda body: body.pop("specs"), "lacks `specs`"),
        (lambda body: [body.pop("example"), body.pop("forward")], "lacks `example`, `forward`"),
    ],
)
def test_a_class_that_breaks_the_contract_is_refused_at_its_definition(change: Any, reason: str) -> None:
    body = dict(vars(imported(OWN, "own_part").MeanColour))
    body["Config"] = type("Config", (body["Config"],), {"__module__": __name__})
    change(body)
    with pytest.raises(RegistryError, match=f"Broken.*{reason}"):
        type("Broken", (Backbone,), body)


def test_a_sentence_is_written_once() -> None:
    part = imported(OWN, "own_part").MeanColour
    assert part.Config.__doc__ == part.__doc__ == part.Config.model_fields["type"].description


def test_a_base_class_of_parts_needs_no_type() -> None:
    assert issubclass(type("Base", (Backbone,), {}), Backbone)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (MlpBackbone, "is not a subclass of ActionHead"),
        (type("Bare", (), {}), "is not a subclass of ActionHead"),
        (type("NoConfig", (HEADS._base,), {}), "its Config must declare `type: Literal"),
    ],
)
def test_what_is_no_part_of_the_kind(part: Any, reason: str) -> None:
    with pytest.raises(RegistryError, match=reason):
        HEADS.register(part)
