"""Filling the table of frozen features, beside an eager forward pass of the same backbone over the same images.

    python benchmarks/cache_fill.py --output benchmarks/results/cache_fill.json

The backbone is that of the work `vit_b_frozen` of `train_step.py`, under bf16 on a GPU; images are on the device. The eager
pass is transforms and backbone without gradients, in batches; filling also stores the features and the rest of every
sample, and hashes the weights, whatever the number of `--batches`. Each is run `--rounds`
times in turn, after each of which results are written; `--tiny` shows that it works, and nothing of speed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from step.protocol import Protocol
from step.setup import Bench
from step.variants import Indices, Resident
from step.workloads import choose

from policysmith.builder.provenance import hardware, machine_versions
from policysmith.builder.training.distributed.accelerator import make_accelerator
from policysmith.builder.training.frozen.cache import Samples, stored_rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    [work] = choose(["vit_b_frozen"], arguments.tiny)
    device = torch.device(arguments.device)
    bench = Bench.make(work, Protocol(), device, [])
    bench = Bench(bench.policy, bench.batches * arguments.batches, bench.builder, bench.protocol, device)
    seconds: dict[str, list[float]] = {"eager forward": [], "filling": []}
    eager(bench)  # the first pass chooses algorithms
    filling(bench)
    for _ in range(arguments.rounds):
        seconds["eager forward"].append(eager(bench))
        seconds["filling"].append(filling(bench))
        rates = {name: bench.size / statistics.median(found) for name, found in seconds.items()}
        sys.stdout.write(", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()) + " samples/s\n")
        sys.stdout.flush()
        if arguments.output is not None:
            write(arguments, bench.size, seconds, rates)


def write(
    arguments: argparse.Namespace, samples: int, seconds: dict[str, list[float]], rates: dict[str, float]
) -> None:
    """Write the rounds so far into the file."""
    result = {
        "what": (__doc__ or "").splitlines()[0],
        "command": f"python benchmarks/cache_fill.py {shlex.join(sys.argv[1:])}",
        "tiny": arguments.tiny,
        "samples": samples,
        "seconds": seconds,
        "samples_per_second": rates,
        "hardware": hardware(),
        "versions": machine_versions(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def eager(bench: Bench) -> float:
    """Return the seconds of a forward pass of the frozen backbones over all batches."""
    policy: Any = bench.policy.eval()
    accelerator = make_accelerator(bench.section, bench.device.type)
    start = now(bench.device)
    with torch.no_grad(), accelerator.autocast():
        for batch in bench.batches:
            transformed = policy.transform(batch)
            for name in policy.frozen_backbones:
                policy.encode(name, transformed)
    return now(bench.device) - start


def filling(bench: Bench) -> float:
    """Return the seconds that the pass takes which writes a table."""
    policy: Any = bench.policy
    accelerator = make_accelerator(bench.section, bench.device.type)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["POLICYSMITH_CACHE"] = folder
        samples = Samples(
            Indices(bench.size),
            bench.size,
            lambda indices: Resident(bench.held(indices)),
            bench.section.batch_size,
            0,
            "synthetic",
        )
        start = now(bench.device)
        rows = stored_rows(policy, samples, 100 * bench.size, accelerator, lambda note: None)
        seconds = now(bench.device) - start
        assert rows is not None
    return seconds


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
