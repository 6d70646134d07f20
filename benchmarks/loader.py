"""Random samples of a dataset: frames raw in the cache, and decoded while reading; without workers and with them.

    python benchmarks/loader.py --output benchmarks/results/loader.json

The dataset is made for it: episodes of moving scenes, h264 with a keyframe at every second frame, a chunk of 16 actions. Each
combination of cameras, form of the frames and workers is timed `--rounds` times in turn, and the medians are told: CPU
time of the process and wall time, in milliseconds a sample, and frames on disk and in the videos. `--tiny` shows that
it works, and nothing of speed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from policysmith.builder.data.dataset import LeRobotDataset
from policysmith.builder.data.frames.choice import FrameChoice
from policysmith.builder.data.sampler import ResumableSampler
from policysmith.builder.data.writing.writer import LeRobotWriter
from policysmith.builder.provenance import hardware, machine_versions
from policysmith.builder.training.batches import loaded_batches
from policysmith.components.collators.default import stack

Form = Literal["raw", "stream"]
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    size, frames = ((32, 48), 20) if arguments.tiny else ((480, 640), 100)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["POLICYSMITH_CACHE"] = str(Path(folder) / "cache")
        for cameras in arguments.cameras:
            root = Path(folder) / f"{cameras}_cameras"
            write_dataset(root, cameras, size, frames)
            found += measured(root, cameras, arguments)
    if arguments.output is not None:
        report = {
            "command": ["python", "benchmarks/loader.py", *sys.argv[1:]],
            "hardware": hardware(),
            "versions": machine_versions(),
            "rows": found,
        }
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


def measured(root: Path, cameras: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time all combinations in turn, tell them and return them."""
    forms: tuple[Form, ...] = ("raw", "stream")
    datasets = {form: opened(root, form) for form in forms}
    seconds: dict[tuple[Form, int], list[tuple[float, float]]] = {}
    for number in range(arguments.rounds + 1):  # the first opens files
        for form, workers in product(forms, arguments.workers):
            one = timed(datasets[form], workers, arguments.batches, seed=number)
            if number:
                seconds.setdefault((form, workers), []).append(one)
    rows = []
    for (form, workers), times in seconds.items():
        cpu, wall = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
        rows.append(
            {
                "cameras": cameras,
                "frames": form,
                "workers": workers,
                "cpu_ms": round(cpu, 3),
                "wall_ms": round(wall, 3),
            }
        )
        sys.stdout.write(
            f"{cameras} cameras, {form:6}, {workers} workers: {cpu:7.2f} ms of CPU, {wall:7.2f} ms a sample\n"
        )
        sys.stdout.flush()
    return rows


def opened(root: Path, form: Form) -> LeRobotDataset:
    return LeRobotDataset(root, action_indices=range(16), frames=FrameChoice(form))


def timed(dataset: LeRobotDataset, workers: int, batches: int, seed: int) -> tuple[float, float]:
    """Return the CPU and the wall time of a sample, without those of the first batches."""
    order = ResumableSampler(len(dataset), batch_size=BATCH, seed=seed)
    source: Iterator[Any] = loaded_batches(
        dataset, order, stack, accumulate=1, keyed=False, workers=workers, device=torch.device("cpu")
    )
    for _ in islice(source, 2 * workers + 1):
        pass
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in islice(source, batches):
        pass
    spent = time.process_time() - cpu, time.perf_counter() - wall
    source.close()  # type: ignore[attr-defined]
    return spent[0] / (batches * BATCH), spent[1] / (batches * BATCH)


def write_dataset(root: Path, cameras: int, size: tuple[int, int], frames: int) -> None:
    """Write four episodes of smooth scenes that move."""
    generator = np.random.default_rng(0)
    names = [f"camera_{number}" for number in range(cameras)]
    vectors = {
        "action": [f"joint_{i}" for i in range(7)],
        "observation.state": [f"joint_{i}" for i in range(7)],
    }
    with LeRobotWriter(root, fps=30, cameras=dict.fromkeys(names, size), vectors=vectors) as writer:
        for _ in range(4):
            episode = {key: generator.normal(size=(frames, 7)).astype(np.float32) for key in vectors}
            for name in names:
                coarse = torch.from_numpy(generator.uniform(0, 255, (1, 3, 12, 16)))
                scene = (
                    torch.nn.functional.interpolate(coarse, size, mode="bicubic")
                    .clamp(0, 255)[0]
                    .byte()
                    .numpy()
                )
                moving = [np.roll(scene, (step, 2 * step), (1, 2)) for step in range(frames)]
                episode[f"observation.images.{name}"] = np.stack(moving)
            writer.add_episode("move", episode)


if __name__ == "__main__":
    main()
