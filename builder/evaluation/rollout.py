"""One episode, and the worker processes that run many.

An episode depends only on its seed, not on the process: the environment is reset with the seed, the policy
forgets the last episode, and torch's generator, which stochastic heads use, is seeded again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from ...schemas.errors import CheckpointError, PolicysmithError, RecipeError, SimulatorError, SpecError
from ...schemas.specs import IMAGES
from ..inference.runner import Runner
from ..planning.checks.compatibility import Needs, Reordering, Scene
from ..policy import BasePolicyModel
from ..saved_policy import SavedPolicy
from ..simulation.base import Environment, Image, Observation, make

EnvironmentFactory = Callable[[int, bool], Environment]
"""Module-level function that makes an environment from the side of its images in pixels and whether it renders."""


@dataclass(frozen=True)
class Episode:
    """Outcome of one rollout; `steps` counts the actions up to the first success or the step limit."""

    index: int
    seed: int
    success: bool
    steps: int


@dataclass(frozen=True)
class Rollout:
    """An episode and, if it was filmed, the images of its first camera, uint8 (H, W, 3)."""

    episode: Episode
    frames: list[Image]


@dataclass(frozen=True)
class Job:
    """Inputs of a worker process."""

    saved: SavedPolicy
    needs: Needs
    env: str | EnvironmentFactory
    device: str
    allow_imports: bool

    def open(self) -> tuple[Runner, Environment]:
        """Load the policy into an engine on its device, and open the environment."""
        transformers_logging.disable_progress_bar()
        try:
            self.saved.run_imports(allowed=self.allow_imports)
        except RecipeError as error:  # its diagnostics refer to whole documents; the text is enough
            raise CheckpointError(str(error)) from None
        size = self.needs.image_size
        if isinstance(self.env, str):
            environment = make(self.env, image_size=size or 96, render=size is not None)
        else:
            environment = self.env(size or 96, size is not None)
        return self.saved.load().runner(self.device), environment


def roll_out(
    policy: BasePolicyModel | Runner,
    environment: Environment,
    *,
    index: int,
    seed: int,
    needs: Needs,
    film_every: int | None = None,
) -> Rollout:
    """Run an episode until the first success or the step limit.

    `film_every` is the stride of the frames to keep, besides the last one; None keeps none.

    Raises:
        SimulatorError: An observation or an action is not finite, or far outside the range of training.
    """
    torch.manual_seed(seed)
    policy.reset()
    reordering = Reordering.of(needs, Scene.of(environment))
    observation = environment.reset(seed)
    frames: list[Image] = []
    success, steps = False, 0
    while not success and steps < environment.max_steps:
        if film_every is not None and steps % film_every == 0:
            frames.append(_view(observation, environment))
        try:
            seen = needs.select(reordering.observation(observation))
            action = reordering.command(policy.select_action(seen).float().numpy().astype(np.float32))
        except SpecError as error:
            raise SimulatorError(f"episode {index} (seed {seed}), step {steps}: {error}") from error
        result = environment.step(action)
        observation, success, steps = result.observation, result.success, steps + 1
        if result.done:
            break
    if film_every is not None:
        frames.append(_view(observation, environment))
    return Rollout(Episode(index, seed, success, steps), frames)


def _view(observation: Observation, environment: Environment) -> Image:
    image = observation.get(f"{IMAGES}{environment.cameras[0]}") if environment.cameras else None
    return environment.render() if image is None else np.ascontiguousarray(np.moveaxis(image, 0, -1))


_job: Job | None = None
_opened: tuple[Runner, Environment] | None = None


def begin(job: Job) -> None:
    """Initialize a worker process, with one thread so that results do not depend on the number of workers."""
    global _job
    _job = job
    torch.set_num_threads(1)


def describe() -> Scene:
    """Open policy and environment in a worker, and return the description of the environment."""
    return Scene.of(_open()[1])


def run_episode(index: int, seed: int, film_every: int | None) -> Rollout:
    """Run one episode in a worker."""
    assert _job is not None
    policy, environment = _open()
    return roll_out(policy, environment, index=index, seed=seed, needs=_job.needs, film_every=film_every)


def _open() -> tuple[Runner, Environment]:
    global _opened
    if _opened is None:
        assert _job is not None
        try:
            _opened = _job.open()
        except PolicysmithError:
            raise
        except Exception as error:
            raise SimulatorError(
                f"a rollout process cannot start: {type(error).__name__}: {error}"
            ) from error
    return _opened
