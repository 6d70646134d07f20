r"""Samples a second of several GPUs beside one: this project's trainer on a work of `train_step.py`, with batches on the GPU.

    python benchmarks/scaling.py --work vit_b --processes 1 2 --output benchmarks/results/scaling_vit_b.json
    python benchmarks/scaling.py --work pi0_full --processes 1 2 --sharding full -o training.optimizer.states=8bit \
        --output benchmarks/results/scaling_pi0.json

Every number of processes runs in turn, `--rounds` times, under `torchrun`, with the batch of the work for each process. The
result of a run is the median over its log intervals without the first ones, in which layers are compiled. A `--tiny` run on
a CPU shows that everything works, and nothing about speed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

LOG_EVERY, SKIPPED = 10, 3


def main() -> None:
    arguments = parse()
    if "RANK" in os.environ:
        take_steps(arguments)
        return
    runs: dict[int, list[dict[str, Any]]] = {count: [] for count in arguments.processes}
    for _ in range(arguments.rounds):
        for count in arguments.processes:
            runs[count].append(launched(count))
            tell(f"{count} processes: {runs[count][-1]['samples_per_second']:,.0f} samples/s")
    rates = {
        count: statistics.median(run["samples_per_second"] for run in found) for count, found in runs.items()
    }
    first = min(rates)
    for count, rate in rates.items():
        tell(f"{count}: {rate:,.0f} samples/s, {rate / rates[first]:.2f} times those of {first}")
    if arguments.output is not None:
        content = {
            "what": (__doc__ or "").splitlines()[0],
            "command": f"python benchmarks/scaling.py {shlex.join(sys.argv[1:])}",
            "tiny": arguments.tiny,
            "samples_per_second": rates,
            "times": {count: rate / rates[first] for count, rate in rates.items()},
            "runs": runs,
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", default="vit_b", help="a work of train_step.py")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--sharding", choices=("off", "full"), default="off", help="of several processes")
    parser.add_argument(
        "-o", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="recipe option"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each number of processes")
    parser.add_argument("--steps", type=int, default=100, help="of each run")
    parser.add_argument("--batch", type=int, help="samples of each process, instead of the work's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def launched(count: int) -> dict[str, Any]:
    """Run so many processes, and return the result of the first."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [
            sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "--standalone",
            __file__, *sys.argv[1:],
        ]  # fmt: skip
        environment = {**os.environ, "SCALING_RESULT": str(result), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
        if done.returncode:
            raise SystemExit(f"{count} processes failed")
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def take_steps(arguments: argparse.Namespace) -> None:
    """Train in each of the processes."""
    import torch
    from step.protocol import Protocol
    from step.setup import Bench
    from step.variants import Indices, Resident
    from step.workloads import choose

    from policysmith.builder.provenance import hardware, machine_versions
    from policysmith.builder.training import loop
    from policysmith.builder.training.distributed.accelerator import make_accelerator
    from policysmith.builder.training.job import Job

    several = int(os.environ["WORLD_SIZE"]) > 1
    [work] = choose([arguments.work], arguments.tiny)
    work = replace(work, batch=arguments.batch or work.batch)
    place = torch.device(
        arguments.device, *([int(os.environ["LOCAL_RANK"])] if arguments.device == "cuda" else [])
    )
    if place.type == "cuda":
        torch.cuda.set_device(place)
    protocol = Protocol(
        loss_steps=LOG_EVERY, rounds=1, warmup=0, steps=arguments.steps - LOG_EVERY - 1, log_every=LOG_EVERY
    )
    changes = [*arguments.changes, *([f"training.sharding={arguments.sharding}"] if several else [])]
    bench = Bench.make(work, protocol, place, changes)
    reporter = Rates()
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            policy=bench.policy,
            dataset=Indices(bench.size),
            collate=lambda indices: Resident(bench.held(indices)),
            section=bench.section,
            directory=Path(folder),
            recipe=bench.builder.recipe.resolved(),
            fingerprint="synthetic",
        )
        accelerator = make_accelerator(bench.section, place.type)
        with contextlib.suppress(Enough):
            loop.train(job, accelerator, [reporter])
    if int(os.environ["RANK"]) == 0:
        result = {
            "samples_per_second": statistics.median(reporter.rates[SKIPPED:]),
            "intervals": reporter.rates,
            "notes": reporter.notes,
            "peak_bytes": torch.cuda.max_memory_allocated() if place.type == "cuda" else None,
            "hardware": hardware(),
            "versions": machine_versions(),
        }
        Path(os.environ["SCALING_RESULT"]).write_text(json.dumps(result))
    if several:
        torch.distributed.destroy_process_group()


class Enough(Exception):
    """Raised before the last step, after which a run saves."""


class Rates:
    """A reporter that keeps the speed of every log interval."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.notes: list[str] = []
        self._last = 0

    def start(self, step: int, steps: int) -> None:
        self._last = steps - 1

    def advance(self, step: int) -> None:
        if step == self._last:
            raise Enough

    def log(self, step: int, values: dict[str, float]) -> None:
        self.rates.append(values["samples_per_second"])

    def note(self, message: str) -> None:
        self.notes.append(message)

    def close(self) -> None: ...


def tell(message: str) -> None:
    sys.stdout.write(f"{message}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
