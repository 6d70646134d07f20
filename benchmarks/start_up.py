"""Time from a new process to the first action of a policy, beside that of importing torch and transformers alone.

    python benchmarks/start_up.py runs/vit_mlp --output benchmarks/results/2026-12-cpu/start_up.json
    python benchmarks/start_up.py runs/vit_mlp --beside ../main

`--beside` measures another checkout too, in turns. CPU seconds are the processes' own: on a busy machine they vary less than
wall seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = "import torch; from transformers import AutoModel, PreTrainedModel"
ACTION = """
import sys
import policysmith
policy = policysmith.load(sys.argv[1])
from policysmith.builder.inference.example import example_samples
policy.runner().predict(example_samples(policy, 1))
"""


def main() -> None:
    """Print and write the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policy", type=Path, help="a run or a checkpoint")
    parser.add_argument("--beside", type=Path, help="another checkout to measure too")
    parser.add_argument("--repeats", type=int, default=9, help="processes of each (default: 9)")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    measured: dict[str, tuple[Path, str]] = {
        "torch and transformers": (ROOT, LIBRARIES),
        "load to first action": (ROOT, ACTION),
    }
    if args.beside is not None:
        measured["load to first action, beside"] = (args.beside, ACTION)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in measured}
    for _ in range(args.repeats):
        for name, (checkout, code) in measured.items():
            found[name].append(timed(checkout, code, args.policy.resolve()))
    result = {
        "what": "Seconds of a new process until the first action: medians, and the least.",
        "repeats": args.repeats,
        "load_average": os.getloadavg(),
        "rows": {name: summary(times) for name, times in found.items()},
    }
    sys.stdout.write(f"{json.dumps(result, indent=1)}\n")
    if args.output is not None:
        from policysmith.builder.provenance import hardware, machine_versions

        args.output.parent.mkdir(parents=True, exist_ok=True)
        command = f"python benchmarks/start_up.py {args.policy} --output {args.output}"
        more = {"command": command, "hardware": hardware(), "versions": machine_versions()}
        args.output.write_text(json.dumps({**result, **more}, indent=1) + "\n")


def timed(checkout: Path, code: str, policy: Path) -> tuple[float, float]:
    """Return wall and CPU seconds of a process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, str(policy)],
        env={**os.environ, "PYTHONPATH": str(checkout.resolve() / ".namespace")},
        capture_output=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, sum(after[:2]) - sum(before[:2])


def summary(times: list[tuple[float, float]]) -> dict[str, Any]:
    """Return the median and the least of wall and CPU seconds."""
    wall, cpu = zip(*times, strict=True)
    return {
        f"{name}_s": {"median": round(statistics.median(values), 2), "least": round(min(values), 2)}
        for name, values in (("wall", wall), ("cpu", cpu))
    }


if __name__ == "__main__":
    main()
