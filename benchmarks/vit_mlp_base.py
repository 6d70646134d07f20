"""Training speed of `recipes/vit_mlp_base.yaml` (ViT-B/16 at 224 pixels, random weights, bundled demonstrations).

    python benchmarks/vit_mlp_base.py --output benchmarks/results/vit_mlp_base.json

Runs the command of the recipe's header with few steps, once for each number of loader workers, and reports the median
samples per second of the logged intervals after the first, with the share of time spent waiting for data.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
VIT_B16 = "{type: vit, patch_size: 16, width: 768, depth: 12, heads: 12}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 8])
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    runs = [measure(workers, arguments.steps, arguments.batch_size) for workers in arguments.workers]
    result = {"what": __doc__.splitlines()[0], "machine": machine(), "runs": runs}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    for run in runs:
        sys.stdout.write(
            f"workers {run['workers']}: {run['samples_per_second']['median']:.0f} samples/s "
            f"({run['samples_per_second']['min']:.0f} to {run['samples_per_second']['max']:.0f}), "
            f"data wait {run['data_wait']:.0%}\n"
        )


def measure(workers: int, steps: int, batch_size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "build-and-train", "recipes/vit_mlp_base.yaml", "--output", f"{folder}/run",
            "-o", f"policy.backbones.vision={VIT_B16}",
            "-o", f"training.steps={steps}", "-o", "training.schedule.warmup=10",
            "-o", f"training.batch_size={batch_size}", "-o", f"training.workers={workers}",
            "-o", "training.log_every=10", "-o", "training.save_every=null",
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True)
        lines = [json.loads(line) for line in Path(folder, "run", "log.jsonl").read_text().splitlines()]
        shown = shlex.join(command).replace(folder, "runs")
    notes = [line["note"] for line in lines if "note" in line]
    steady = [line for line in lines if "loss" in line][1:]
    speeds = [line["samples_per_second"] for line in steady]
    return {
        "command": shown,
        "workers": workers,
        "batch_size": batch_size,
        "setting": notes[0],
        "samples_per_second": {"median": statistics.median(speeds), "min": min(speeds), "max": max(speeds)},
        "data_wait": statistics.median(line["data_wait"] for line in steady),
        "intervals": len(speeds),
        "first_loss": next(line["loss"] for line in lines if "loss" in line),
        "last_loss": steady[-1]["loss"],
    }


def machine() -> dict[str, Any]:
    import torch

    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "timm", "accelerate")},
    }


if __name__ == "__main__":
    main()
