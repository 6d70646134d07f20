"""Provenance of policies and results: a recipe's hash and origins, package versions, git state and hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..schemas.origins import origins

if TYPE_CHECKING:
    from .recipe.loaded import LoadedRecipe

POLICY = ("policysmith", "torch", "transformers", "timm", "peft", "accelerate")
"""Packages that a policy depends on."""
MACHINE = ("policysmith", "torch", "transformers", "timm", "accelerate", "numpy", "metaworld", "mujoco")
"""Packages that an evaluation or a benchmark depends on."""


def package_version(name: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of those of the packages that are installed."""
    return {name: found for name in packages if (found := package_version(name)) is not None}


def policy_provenance(loaded: LoadedRecipe) -> dict[str, Any]:
    """Return the hash of a recipe, the origins of its values, and the versions of packages and plug-ins."""
    own = {name: package_version(name) or "unknown" for name in POLICY}
    return {
        "recipe_sha256": loaded.sha256,
        "versions": own | _plugin_versions(loaded),
        "origins": origins(loaded.document, portable=True),
    }


def git_state(directory: Path) -> dict[str, Any] | None:
    """Return the commit checked out in a directory, and whether tracked files differ from it.

    Return None if there is no git, no repository or no commit.
    """
    describe = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        found = subprocess.run(
            describe,
            cwd=directory,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": found.removesuffix("-dirty"), "dirty": found.endswith("-dirty")}


def _plugin_versions(loaded: LoadedRecipe) -> dict[str, str]:
    """Return the versions of the distributions whose entry points provide parts of the recipe."""
    parts = {
        "collators": [loaded.collator],
        "transforms": loaded.transforms,
        "backbones": loaded.backbones.values(),
        "necks": loaded.necks.values(),
        "heads": [] if loaded.head is None else [loaded.head],
    }
    points = [
        point
        for kind, pairs in parts.items()
        for point in entry_points(group=f"policysmith.{kind}")
        if point.name in {config.type for _, config in pairs}
    ]
    return {point.dist.name: point.dist.version for point in points if point.dist is not None}


def machine_versions(*more: str) -> dict[str, str]:
    """Return the versions of Python and of the installed packages behind an evaluation or a benchmark."""
    return {"python": platform.python_version(), **versions(*MACHINE, *more)}


def hardware() -> dict[str, str]:
    """Return the names of processor and accelerators."""
    found = {"cpu": f"{_processor()}, {os.cpu_count()} cores"}
    if torch.cuda.is_available():
        found["gpu"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names[0] if names else "") or platform.processor() or platform.machine()


__all__ = ["git_state", "hardware", "machine_versions", "package_version", "policy_provenance", "versions"]
