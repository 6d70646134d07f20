"""Runs code in a fresh interpreter that imports the simulation modules but not the rest of `policysmith.builder`.

The package itself registers policies with transformers and so takes seconds to import.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

ALONE = """
import sys, types
package = types.ModuleType("policysmith.builder")
package.__path__ = {folders!r}
sys.modules["policysmith.builder"] = package
"""


def run_alone(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `code` with `variables` set and MUJOCO_GL unset; it must succeed."""
    spec = find_spec("policysmith.builder")
    assert spec is not None
    prelude = ALONE.format(folders=list(spec.submodule_search_locations or ()))
    return subprocess.run(
        [sys.executable, "-c", prelude + code],
        env={key: value for key, value in os.environ.items() if key != "MUJOCO_GL"} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
