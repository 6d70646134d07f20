"""Success in simulation: rollouts of a saved policy, each from an initial state that its seed determines.

    result = evaluate_closed_loop("runs/vit_mlp", env="metaworld/drawer-open-v3", episodes=50, seed=10_000)
    result.success_rate, result.interval          # 1.0, (0.929, 1.0)

Rollouts run in spawned processes, so a script needs `if __name__ == "__main__":`.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Self

from ...schemas.errors import SimulatorError
from ..planning.checks.compatibility import Reordering, Scene, check_scene, needs_of
from ..saved_policy import SavedPolicy, choose_device
from ..simulation.base import environments, make
from ..simulation.seeds import evaluation_seed
from . import rollout
from .rollout import EnvironmentFactory, Episode, Job, Rollout
from .video import FILM_RATE, save_strip, save_video

FILMED = 6
"""Number of rollouts in the video."""
Watch = Callable[[Episode], None]


@dataclass(frozen=True)
class ClosedLoopResult:
    """Outcomes of all episodes, in order."""

    env: str
    seed: int
    episodes: tuple[Episode, ...]
    fps: int
    """Control steps per simulated second."""
    max_steps: int
    seconds: float
    """Wall time, including the start of the worker processes."""
    processes: int
    device: str
    filmed: int = 0
    """Number of rollouts in the video; 0 if the policy reads no image."""
    notes: tuple[str, ...] = ()
    """Notes on the mapping between values of policy and environment."""

    @property
    def successes(self) -> int:
        """Number of successful episodes."""
        return sum(episode.success for episode in self.episodes)

    @property
    def success_rate(self) -> float:
        """Fraction of successful episodes."""
        return self.successes / len(self.episodes)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval of the success rate."""
        return wilson(self.successes, len(self.episodes))

    @property
    def mean_steps(self) -> float | None:
        """Mean length of successful episodes in control steps; None without success."""
        lengths = [episode.steps for episode in self.episodes if episode.success]
        return sum(lengths) / len(lengths) if lengths else None

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        low, high = self.interval
        return {
            "env": self.env,
            "seed": self.seed,
            "n": len(self.episodes),
            "successes": self.successes,
            "success_rate": self.success_rate,
            "interval_95": [low, high],
            "mean_steps_of_successes": self.mean_steps,
            "fps": self.fps,
            "max_steps": self.max_steps,
            "seconds": round(self.seconds, 1),
            "processes": self.processes,
            "device": self.device,
            "notes": list(self.notes),
            "episodes": [vars(episode) for episode in self.episodes],
        }


def evaluate_closed_loop(
    policy_directory: str | Path,
    *,
    env: str | EnvironmentFactory,
    embodiment: str | None = None,
    episodes: int = 50,
    seed: int = 10_000,
    processes: int | None = None,
    device: str | None = "cpu",
    video: Path | None = None,
    strip: Path | None = None,
    allow_imports: bool = False,
    verify: bool = True,
    watch: Watch | None = None,
) -> ClosedLoopResult:
    """Run a saved policy, or the newest of a run, in simulation.

    Args:
        policy_directory: Directory of a checkpoint or a run.
        env: Name for `simulation.base.make`, or a module-level function that makes an environment.
        embodiment: Robot in the environment, for a policy for several.
        episodes: Number of rollouts.
        seed: Seed of the first rollout.
        processes: Number of worker processes, by default one per CPU core; results do not depend on it.
        device: Device of the policy, None for the best one available; the simulator runs on the CPU.
        video: File (mp4) for the first episodes, if the policy reads images.
        strip: File (png) for frames of one episode, if the policy reads images.
        allow_imports: Run the Python files that the recipe imports.
        verify: Compare the files of the checkpoint with their digests.
        watch: Called with every finished episode.

    Raises:
        SpecError: Policy and environment do not fit; raised before any rollout.
        SimulatorError: The simulator is missing, or a rollout failed.
        CheckpointError, RecipeError: The policy cannot be loaded.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, not {episodes}")
    start = time.perf_counter()
    saved = SavedPolicy.find(policy_directory, verify=verify)
    saved.run_imports(allowed=allow_imports)
    needs = needs_of(saved, embodiment)
    filming = needs.image_size is not None and (video is not None or strip is not None)
    if isinstance(env, str) and env not in environments():
        make(env)  # raises with a suggestion
    device = choose_device(device)
    processes = min(processes or _default_processes(device), episodes)
    job = Job(saved, needs, env, device, allow_imports)
    with _Workers(processes, job) as workers:
        scene = workers.describe()
        check_scene(needs, scene)
        stride = max(1, round(scene.fps / FILM_RATE))
        futures = [
            workers.submit(
                rollout.run_episode,
                index,
                evaluation_seed(seed, index),
                stride if filming and index < FILMED else None,
            )
            for index in range(episodes)
        ]
        finished: list[Rollout] = []
        for future in as_completed(futures):
            finished.append(future.result())
            if watch is not None:
                watch(finished[-1].episode)
    finished.sort(key=lambda one: one.episode.index)
    filmed = [one for one in finished if one.frames]
    if filmed and video is not None:
        save_video(video, [(one.frames, one.episode.success) for one in filmed])
    if filmed and strip is not None:
        save_strip(strip, next((one for one in filmed if one.episode.success), filmed[0]).frames)
    return ClosedLoopResult(
        env=scene.name,
        seed=seed,
        episodes=tuple(one.episode for one in finished),
        fps=scene.fps,
        max_steps=scene.max_steps,
        seconds=time.perf_counter() - start,
        processes=processes,
        device=job.device,
        filmed=len(filmed),
        notes=Reordering.of(needs, scene).notes,
    )


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a success probability (Wilson, 1927), within [0, 1]; (0, 1) without trials.

    Unlike the normal approximation, it never has zero width: 50 of 50 yields 0.93 to 1.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    if not trials:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    rate, share = successes / trials, z * z / trials
    center = (rate + share / 2.0) / (1.0 + share)
    half = z * math.sqrt(rate * (1.0 - rate) / trials + share / (4.0 * trials)) / (1.0 + share)
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == trials else center + half
    return low, high


class _Workers:
    """Spawned processes that share a job. An exception cancels the episodes that have not begun."""

    def __init__(self, count: int, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self._count = count
        self._pool = ProcessPoolExecutor(
            count, mp_context=context, initializer=rollout.begin, initargs=(job,)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if isinstance(error, BrokenProcessPool):
            raise SimulatorError(
                "a rollout process died, often for lack of memory; use fewer processes, and in a script keep the "
                'call under `if __name__ == "__main__":`'
            ) from error

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        return self._pool.submit(function, *args)

    def describe(self) -> Scene:
        """Ask every worker, so that all start at once, and return the first answer."""
        futures = [self._pool.submit(rollout.describe) for _ in range(self._count)]
        return next(as_completed(futures)).result()


def _default_processes(device: str) -> int:
    """Return the number of CPU cores; at most 8 on a GPU, as each process holds a policy."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8) if device == "cuda" else cores
