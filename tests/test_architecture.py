"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import fnmatch
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("builder", "components", "schemas")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
WRITES_TO_THE_TERMINAL = {
    "builder/cli.py",
    "builder/commands/guide.py",
    "builder/commands/machine.py",
    "builder/commands/recipes.py",
    "builder/commands/runs.py",
    "builder/display.py",
    "builder/inference/command.py",
    "schemas/arguments/parser.py",
    "schemas/questions/commands.py",
    "schemas/console.py",
}


def names(path: Path) -> set[str]:
    """Return every dotted name and attribute chain in a file."""
    return {
        ast.unparse(n)
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Attribute | ast.Name)
    }


def test_every_package_is_listed_for_the_wheel() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        "policysmith." + str(path.parent.relative_to(ROOT)).replace("/", ".")
        for package in (*PACKAGES, "recipes")
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert listed == found | {"policysmith"}


def test_the_wheel_holds_no_ignored_data() -> None:
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    found = {path for pattern in packed["policysmith.recipes"] for path in (ROOT / "recipes").glob(pattern)}
    assert ROOT / "recipes/datasets/drawer_open/meta/info.json" in found
    named = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if "datasets" in line]
    assert named
    for pattern in packed["policysmith.recipes"]:
        assert not any(fnmatch.fnmatch(f"{name}/meta/info.json", f"recipes/{pattern}") for name in named)


def test_links_for_static_tools_point_at_the_folders() -> None:
    for package in (*PACKAGES, "recipes"):
        assert (ROOT / ".namespace" / "policysmith" / package).resolve() == ROOT / package


def test_one_module_subclasses_pretrained_model() -> None:
    owners = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith("PreTrainedModel") for base in node.bases)
    ]
    assert owners == ["builder/policy/base.py"]


def test_terminal_and_unsafe_loading_stay_where_they_belong() -> None:
    writing = {"print", "sys.stdout.write", "sys.stderr.write", "Console"}
    unsafe = {"eval", "exec", "pickle.load", "pickle.loads"}
    for path in SOURCES:
        used = names(path)
        if str(path.relative_to(ROOT)) not in WRITES_TO_THE_TERMINAL:
            assert not used & writing, path
        assert not used & unsafe, path


def test_files_are_short() -> None:
    long = [str(path) for path in SOURCES if len(path.read_text().splitlines()) > 400]
    assert not long


def test_every_torch_load_is_restricted_to_tensors() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert arguments.get("weights_only") == "True", path
