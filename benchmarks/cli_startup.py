"""Time from the shell to the report of a typo, as a process: the goal is half a second.

python benchmarks/cli_startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 10
RECIPE = """\
recipe: 1
name: small
data: {path: datasets/x}
policy:
  backbones:
    vision: {type: vit, widht: 128}
    proprio: {type: mlp}
  head: {type: mlp, hidden: [64, "64"]}
training: {steps: 10, lr: 1.0e-3}
"""


def main() -> None:
    """Print the median, with a bare interpreter for comparison."""
    command = Path(sys.executable).with_name("build-and-train")
    with tempfile.TemporaryDirectory() as directory:
        recipe = Path(directory) / "typo.yaml"
        recipe.write_text(RECIPE, encoding="utf-8")
        report(f"{command.name} on a recipe with three mistakes", [str(command), str(recipe)], expected=3)
    report("a bare interpreter", [sys.executable, "-c", "pass"], expected=0)


def report(what: str, command: list[str], expected: int) -> None:
    """Run a command several times and print the median of its wall times."""
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        code = subprocess.run(command, capture_output=True, check=False).returncode
        times.append(time.perf_counter() - start)
        if code != expected:
            raise SystemExit(f"{command[0]} ended with {code}, not {expected}")
    sys.stdout.write(f"{what}: {statistics.median(times[1:]) * 1e3:.0f} ms (median of {RUNS})\n")


if __name__ == "__main__":
    main()
