"""A part of a user's own: registered by a file under `imports:`, used like any other, and loaded again."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from policysmith.builder import Builder
from policysmith.components.registry import BACKBONES
from policysmith.schemas import console
from policysmith.schemas.errors import RegistryError

OWN = Path(__file__).with_name("own_part.py")


@pytest.fixture
def recipe(tiny: dict[str, Any], tmp_path: Path, to_yaml: Any) -> Path:
    shutil.copy(OWN, tmp_path / "own_part.py")
    tiny["imports"] = ["own_part.py"]
    tiny["policy"]["backbones"]["vision"] = {"type": "mean_colour", "width": 6}
    path: Path = to_yaml(tiny)
    return path


def test_it_is_judged_and_built_like_any_other(
    recipe: Path, batch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert console.policysmith(["check", str(recipe), "--allow-imports"]) == 0
    assert "mean_colour" in BACKBONES.names()
    builder = Builder.from_recipe(recipe, allow_imports=True)
    assert builder.build().inference(batch()).shape == (2, 4, 4)
    mistake = ["check", str(recipe), "--allow-imports", "-o", "policy.backbones.vision.widht=3"]
    assert console.policysmith(mistake) == console.INVALID_RECIPE
    assert "`policy.backbones.vision` has no key `widht`" in capsys.readouterr().err


def test_without_leave_only_the_import_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.policysmith(["check", str(recipe)]) == console.INVALID_RECIPE
    written = capsys.readouterr().err
    assert "E011 import-refused" in written
    assert "1 mistake" in written


def test_a_type_that_no_import_registers(recipe: Path, refused: Any) -> None:
    (recipe.parent / "own_part.py").write_text("")
    (finding,) = refused(Builder.from_recipe(recipe, allow_imports=True).check)
    assert finding.code == "E006 unknown-type"
    assert finding.help == "register it with `@BACKBONES.register` in a file under `imports:`"


def test_a_checkpoint_is_loaded_once_its_file_is_imported(recipe: Path, batch: Any, forked: Any) -> None:
    home = recipe.parent
    Builder.from_recipe(recipe, allow_imports=True).build().save_pretrained(home / "policy")
    code = """
        import sys
        from transformers import AutoModel
        import policysmith.builder
        sys.path.insert(0, sys.argv[1])
        if len(sys.argv) > 2:
            import own_part
        policy = AutoModel.from_pretrained(sys.argv[1] + "/policy")
        print(type(policy.backbones["vision"]).__name__)
    """
    loaded = forked(code, home, "import")
    assert loaded.stdout.strip() == "MeanColour", loaded.stderr
    failed = forked(code, home)
    last = failed.stderr.strip().splitlines()[-1]
    assert (
        "RegistryError: `policy.backbones.vision` cannot be built: no backbones part is called `mean_colour`"
        in last
    )
    assert last.endswith("import `own_part.py` first, as its recipe does")


def test_in_python_the_same_error(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from policysmith.builder.wiring.parts import Parts

    resolved = Builder.from_recipe(recipe, allow_imports=True).recipe.resolved()
    monkeypatch.setattr(BACKBONES, "_registered", {})
    with pytest.raises(RegistryError, match=r"import `own_part\.py` first"):
        Parts.from_resolved(resolved)
    with pytest.raises(RegistryError, match="install what provides it"):
        Parts.from_resolved({**resolved, "imports": []})


def test_a_part_of_a_notebook_cell_is_known_without_imports(
    recipe: Path, tiny: dict[str, Any], batch: Any, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    del tiny["imports"]
    (finding,) = refused(Builder.from_recipe(tiny).check)
    assert finding.code == "E006 unknown-type"
    cell = ModuleType("cell")  # without a file, as `__main__` of a notebook
    monkeypatch.setitem(sys.modules, "cell", cell)
    exec(compile(OWN.read_text(), "<cell>", "exec"), vars(cell))  # noqa: S102
    policy = Builder.from_recipe(tiny).build()
    assert policy.inference(batch()).shape == (2, 4, 4)
    policy.save_pretrained(recipe.parent / "cell")
    loaded = type(policy).from_pretrained(recipe.parent / "cell")
    assert loaded.inference(batch()).equal(policy.inference(batch()))
