"""Recording of demonstrations of a scripted expert as a LeRobot dataset.

    summary = record("metaworld/drawer-open-v3", 50, Path("drawer_open"), image_size=96, seed=0)

Only successful episodes are kept. Actions are clipped to [-1, 1] before they are stored. With noise, the
executed action is perturbed and the clean one stored, so that the data contains recoveries from mistakes.
Equal arguments yield equal bytes, for any number of worker processes. `meta/recording.json` contains the
command, the seed of every episode, the versions of the simulator and the settings of the renderer.
"""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....schemas.errors import DatasetError, SimulatorError
from ....schemas.specs import IMAGES
from ...simulation.base import Demonstrator, make
from ...simulation.seeds import demonstration_seed
from .staging import require_empty
from .writer import LeRobotWriter

TAIL = 5
"""Number of steps recorded after success, so that the data shows how a task ends."""
FAILURES_ALLOWED = 10
"""Number of failures before a recording with more failures than successes is aborted."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of the expert. `frames` are the columns (T, ...) of the dataset, None after a failure."""

    seed: int
    frames: dict[str, NDArray[Any]] | None


@dataclass(frozen=True, slots=True)
class RecordingSummary:
    """Summary of a recording: kept episodes, attempts, frames, and bytes on disk."""

    output: Path
    kept: int
    tried: int
    frames: int
    bytes: int

    def __str__(self) -> str:
        return (
            f"{self.output}: {self.kept} episodes from {self.tried} attempts, {self.frames} frames, "
            f"{self.bytes / 1e6:.1f} MB"
        )


def record(
    env_name: str,
    episodes: int,
    output: str | Path,
    *,
    image_size: int = 96,
    seed: int = 0,
    noise: float = 0.0,
    workers: int = 1,
    progress: Progress | None = None,
) -> RecordingSummary:
    """Run the expert of an environment until `episodes` attempts succeed, and write them to `output`.

    Args:
        env_name: Environment, such as `metaworld/push-v3`.
        episodes: Number of demonstrations.
        output: Directory of the dataset, absent or empty.
        image_size: Side of the images in pixels; even.
        seed: Seed of the first attempt.
        noise: Standard deviation of noise on executed actions, in the units of the actions.
        workers: Number of simulator processes.
        progress: Called as `progress(kept, episodes)` after each success.

    Raises:
        SimulatorError: The environment is unknown, has no expert or cannot run, or the expert fails more
            often than it succeeds.
        DatasetError: `output` is not empty, the image size is odd, or a number is out of range.
    """
    if episodes < 1 or workers < 1 or seed < 0 or not (np.isfinite(noise) and noise >= 0):
        raise DatasetError(
            f"episodes={episodes} and workers={workers} must be at least 1, seed={seed} not negative, "
            f"and noise={noise} finite and not negative"
        )
    output = Path(output)
    require_empty(output)
    with closing(_open(env_name, image_size)) as environment:
        kept: list[int] = []
        discarded: list[int] = []
        frames = 0
        with (
            _writer(output, environment, image_size) as writer,
            closing(_attempts(environment, env_name, image_size, seed, noise, workers)) as attempts,
        ):
            for attempt in attempts:
                if attempt.frames is None:
                    discarded.append(attempt.seed)
                    _refuse_hopeless(env_name, kept, discarded, noise)
                    continue
                writer.add_episode(environment.task, attempt.frames)
                kept.append(attempt.seed)
                frames += len(attempt.frames["action"])
                if progress is not None:
                    progress(len(kept), episodes)
                if len(kept) == episodes:
                    break
            facts = {"environment": env_name, "seed": seed, "image_size": image_size, "noise": noise}
            facts |= {"tail": TAIL, "episode_seeds": kept, "discarded_seeds": discarded}
            facts |= _provenance(environment, command_line(env_name, episodes, image_size, seed, noise))
            writer.write_json("meta/recording.json", facts)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return RecordingSummary(output, len(kept), len(kept) + len(discarded), frames, size)


def command_line(env_name: str, episodes: int, image_size: int, seed: int, noise: float) -> str:
    """Return the command that records the same dataset."""
    options = {"env": env_name, "episodes": episodes, "image-size": image_size, "seed": seed, "noise": noise}
    words = [f"--{name} {shlex.quote(str(value))}" for name, value in options.items()]
    return " ".join(["policysmith data record", *words, "--output DIR"])


def attempt(environment: Demonstrator, seed: int, noise: float) -> Attempt:
    """Run the expert on the episode of `seed`, up to the step limit or `TAIL` steps beyond success."""
    generator = np.random.default_rng([seed, 1])
    observation = environment.reset(seed)
    images = [f"{IMAGES}{camera}" for camera in environment.cameras]
    columns: dict[str, list[NDArray[Any]]] = {key: [] for key in (*images, "observation.state", "action")}
    steps_left: int | None = None
    while steps_left != 0:
        action = environment.expert_action()
        for key in (*images, "observation.state"):
            columns[key].append(observation[key])
        columns["action"].append(action)
        disturbance = noise * generator.standard_normal(action.shape)
        result = environment.step(np.clip(action + disturbance, -1.0, 1.0).astype(np.float32))
        observation = result.observation
        if steps_left is not None:
            steps_left -= 1
        elif result.success:
            steps_left = TAIL
        if result.done:
            break
    succeeded = steps_left is not None
    return Attempt(seed, {key: np.stack(rows) for key, rows in columns.items()} if succeeded else None)


def _open(env_name: str, image_size: int) -> Demonstrator:
    environment = make(env_name, image_size=image_size)
    if not isinstance(environment, Demonstrator):
        environment.close()
        raise SimulatorError(f"{env_name} has no scripted expert; choose another environment")
    return environment


def _writer(output: Path, environment: Demonstrator, image_size: int) -> LeRobotWriter:
    return LeRobotWriter(
        output,
        fps=environment.fps,
        cameras=dict.fromkeys(environment.cameras, (image_size, image_size)),
        vectors={"observation.state": environment.state_names, "action": environment.action_names},
        robot_type=environment.robot_type,
    )


def _attempts(
    environment: Demonstrator, env_name: str, image_size: int, seed: int, noise: float, workers: int
) -> Generator[Attempt]:
    seeds = (demonstration_seed(seed, index) for index in count())
    if workers == 1:
        for episode_seed in seeds:
            yield attempt(environment, episode_seed, noise)
        return
    # A forked process would share the graphics context of its parent.
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_begin_worker, initargs=(env_name, image_size)
    )
    with pool:
        pending: deque[Future[Attempt]] = deque()
        try:
            for episode_seed in seeds:
                pending.append(pool.submit(_attempt_in_worker, episode_seed, noise))
                if len(pending) > workers:
                    yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


_worker_environment: Demonstrator | None = None


def _begin_worker(env_name: str, image_size: int) -> None:
    global _worker_environment
    _worker_environment = _open(env_name, image_size)


def _attempt_in_worker(seed: int, noise: float) -> Attempt:
    assert _worker_environment is not None
    return attempt(_worker_environment, seed, noise)


def _refuse_hopeless(env_name: str, kept: list[int], discarded: list[int], noise: float) -> None:
    if len(discarded) >= FAILURES_ALLOWED and len(discarded) > len(kept):
        cure = "lower the noise" if noise else "choose another environment"
        raise SimulatorError(
            f"the expert of {env_name} failed {len(discarded)} of {len(kept) + len(discarded)} attempts "
            f"with noise {noise}; {cure}"
        )


def _provenance(environment: Demonstrator, command: str) -> dict[str, Any]:
    facts = environment.provenance()
    versions = {"policysmith": version("policysmith"), **facts.get("versions", {})}
    return {**facts, "versions": versions, "command": command}
