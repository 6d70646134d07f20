"""The public names of `policysmith`: exported, documented, and imported without torch."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import policysmith
from policysmith import builder
from policysmith.schemas import errors

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"


def test_exports_are_what_the_page_documents() -> None:
    documented = re.findall(r"^\| `(\w+)` \| \S.*\.? \|$", PAGE.read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(policysmith.__all__)
    assert dir(policysmith) == sorted(policysmith.__all__)


def test_every_export_exists_and_has_a_docstring() -> None:
    for name in policysmith.__all__:
        value = getattr(policysmith, name)
        assert isinstance(value, str) if name == "__version__" else inspect.getdoc(value), name


def test_every_error_is_exported() -> None:
    kinds = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    raised = {name for name in kinds if getattr(errors, name).__module__ == errors.__name__}
    assert raised <= set(policysmith.__all__)


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, policysmith; policysmith.RecipeError; policysmith.__version__; "
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(policysmith, "bulider")


def test_the_names_that_saved_shims_and_older_code_import_stay() -> None:
    assert sorted(builder.__all__) == [
        "BasePolicyModel", "Builder", "DataCollatorRegistry", "RecipeConfig", "RecipePolicy",
    ]  # fmt: skip
    assert policysmith.Builder is builder.Builder


def test_the_facade_is_one_file_for_imports_and_for_static_tools() -> None:
    link = ROOT / ".namespace" / "policysmith" / "__init__.py"
    assert link.resolve() == ROOT / ".namespace" / "facade" / "__init__.py"
