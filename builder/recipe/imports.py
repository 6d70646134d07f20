"""`imports:` of a recipe: the user's own Python, run once per process and only if allowed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from ...schemas.diagnostics import Diagnostic
from ...schemas.errors import PolicysmithError
from ...schemas.paths import expanded
from ...schemas.yaml.document import Document

_PREFIX = "policysmith_imports"
_loaded: dict[Path, ModuleType] = {}


def run_imports(document: Document) -> list[Diagnostic]:
    """Import every entry of `imports:`. Return a located finding for each that fails."""
    entries = document.value.get("imports")
    found = []
    for position, entry in enumerate(entries if isinstance(entries, list) else ()):
        if not isinstance(entry, str):
            continue
        try:
            _run(entry, document.directory)
        except Exception as error:  # noqa: BLE001  (foreign code may raise anything)
            message = f"importing `{entry}` failed: {type(error).__name__}: {error}"
            found.append(Diagnostic("E012 import-failed", message, document.span(("imports", position))))
    return found


def run_import(entry: str) -> None:
    """Import a Python file, or a module, that registers parts. Raise PolicysmithError if that fails."""
    try:
        _run(entry, Path())
    except Exception as error:
        raise PolicysmithError(f"importing {entry} failed: {type(error).__name__}: {error}") from error


def _run(entry: str, directory: Path) -> None:
    if not entry.endswith(".py"):
        importlib.import_module(entry)
        return
    path = (directory / expanded(entry)).resolve()
    if path in _loaded:
        return
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    name = f"{_PREFIX}_{len(_loaded)}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _loaded[path] = module
