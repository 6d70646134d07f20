"""Success in simulation: rollouts of a saved policy, each from a start that its seed alone determines.

    result = evaluate_closed_loop("runs/vit_mlp/policy", env="metaworld/drawer-open-v3", episodes=50, seed=10_000)
    result.success_rate, result.interval          # 1.0, (0.929, 1.0)

Rollouts run in processes that are spawned, so a script of your own needs `if __name__ == "__main__":`.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ...schemas.errors import SimulatorError
from ..planning.compatibility import Reordering, Scene, check_scene, needs_of
from ..saved_policy import SavedPolicy, choose_device
from ..simulation.base import environments, make
from ..simulation.seeds import evaluation_seed
from . import rollout
from .interval import wilson
from .rollout import EnvironmentFactory, Episode, Job, Rollout
from .video import FILM_RATE, save_strip, save_video

FILMED = 6
Watch = Callable[[Episode], None]


@dataclass(frozen=True)
class ClosedLoopResult:
    """Outcome of every episode, in the order of their numbers."""

    env: str
    seed: int
    episodes: tuple[Episode, ...]
    fps: int
    """Control steps per simulated second."""
    max_steps: int
    seconds: float
    """Wall time, start of the worker processes included."""
    processes: int
    device: str
    filmed: int = 0
    """Rollouts in the video; 0 where the policy sees no image."""
    notes: tuple[str, ...] = ()
    """Notes on the mapping between the numbers of policy and environment."""

    @property
    def successes(self) -> int:
        return sum(episode.success for episode in self.episodes)

    @property
    def success_rate(self) -> float:
        return self.successes / len(self.episodes)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the success rate."""
        return wilson(self.successes, len(self.episodes))

    @property
    def mean_steps(self) -> float | None:
        """Mean length of the successful episodes, in control steps; None where there are none."""
        lengths = [episode.steps for episode in self.episodes if episode.success]
        return sum(lengths) / len(lengths) if lengths else None

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON values."""
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
    """Run a saved policy (or the newest of a run) for `episodes` episodes.

    `env` is a name that `simulation.base.make` knows, or a module-level function that makes an environment;
    `embodiment` says which robot it holds, for a policy of several.
    `processes` is the number of workers, by default one a CPU core; results do not depend on it. `device` is where
    the policy computes, None for the best there is; the simulator runs on the CPU. `video` (mp4) and `strip` (png) are files to write the
    first episodes to, where the policy sees images. `watch` is told of every episode as it ends.

    Raises:
        SpecError: policy and environment do not fit; raised before any rollout.
        SimulatorError: the simulator is missing, or a rollout failed.
        CheckpointError, RecipeError: the policy cannot be loaded.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, not {episodes}")
    start = time.perf_counter()
    saved = SavedPolicy.find(policy_directory, verify=verify)
    saved.run_imports(allowed=allow_imports)
    needs = needs_of(saved, embodiment)
    filming = needs.image_size is not None and (video is not None or strip is not None)
    if isinstance(env, str) and env not in environments():
        make(env)  # raises, and says what was meant
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


class _Workers:
    """Spawned processes that share a job. Leaving by an exception drops the episodes that have not begun."""

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
                "a rollout process died, often for want of memory: use fewer processes; in a script, keep the call "
                'under `if __name__ == "__main__":`'
            ) from error

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        return self._pool.submit(function, *args)

    def describe(self) -> Scene:
        """Asks every worker, so that all of them start at once; the first answer counts."""
        futures = [self._pool.submit(rollout.describe) for _ in range(self._count)]
        return next(as_completed(futures)).result()


def _default_processes(device: str) -> int:
    """One a core; each holds a copy of the policy, so no more than 8 on a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8) if device == "cuda" else cores
