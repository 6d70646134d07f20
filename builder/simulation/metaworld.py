"""The fifty table-top tasks of Meta-World for a Sawyer arm, made reproducible.

    environment = make("push-v3", image_size=96, render=True)

Four things differ from the package's own environments. The seed alone determines an episode: the model is
reset to its initial state, and positions are drawn from the seed, then frozen for the reset, as in the
package's benchmarks. The first image is up to date, although the package moves fixtures without updating
their poses. The view is the camera `corner2`, moved closer and turned upright. The state is the hand's
position in meters and the gripper's opening in [0, 1]; object and goal appear only in the image.

The goal of reach, push and pick-place is a colored dot of a pixel or two at 96 pixels.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...schemas.errors import SimulatorError
from ...schemas.specs import IMAGES
from .base import Action, Image, Observation, StepResult
from .metaworld_tasks import INSTRUCTIONS
from .offscreen import SETTINGS, OffscreenCamera, import_mujoco

CAMERA = "corner2"
CAMERA_POSITION = (0.75, 0.075, 0.7)
MOVED_BY_TASKS = ("body_pos", "body_quat", "site_pos", "site_quat", "geom_pos", "geom_quat", "geom_rgba")


def environments() -> tuple[str, ...]:
    """Return the names of the fifty tasks, such as `drawer-open-v3`."""
    return tuple(INSTRUCTIONS)


def make(name: str, *, image_size: int, render: bool) -> MetaWorldEnvironment:
    """Open a task.

    Raises:
        SimulatorError: Meta-World, MuJoCo or the graphics library is missing.
    """
    return MetaWorldEnvironment(name, image_size=image_size, render=render)


def describe(name: str) -> type[MetaWorldEnvironment]:
    """Return a task as a class with its name and instruction; needs no simulator."""
    return type(
        "MetaWorldTask", (MetaWorldEnvironment,), {"name": f"metaworld/{name}", "task": INSTRUCTIONS[name]}
    )


class MetaWorldEnvironment:
    """One Meta-World task.

    An action is the hand's motion along x, y and z, in units of a centimeter within [-1, 1], and the
    gripper's effort.

    Raises:
        SimulatorError: Meta-World, MuJoCo or the graphics library is missing, or the size is not positive.
    """

    robot_type = "sawyer"
    cameras = (CAMERA,)
    state_names = ("hand_x", "hand_y", "hand_z", "gripper_opening")
    action_names = ("hand_dx", "hand_dy", "hand_dz", "gripper_effort")
    state_dim = len(state_names)
    action_dim = len(action_names)
    fps = 80
    max_steps = 500

    def __init__(self, name: str, *, image_size: int, render: bool) -> None:
        if image_size < 1:
            raise SimulatorError(f"image_size must be a positive number of pixels, not {image_size}")
        self.name, self.task = f"metaworld/{name}", INSTRUCTIONS[name]
        self._task_name = name
        self._mujoco = import_mujoco(render=render)
        self._env = _construct(name)
        self.fps = int(self._env.metadata["render_fps"])
        self.max_steps = int(self._env.max_path_length)
        self._model, self._data = self._env.model, self._env.data
        self._model.cam(CAMERA).pos[:] = CAMERA_POSITION
        self._pristine = {field: getattr(self._model, field).copy() for field in MOVED_BY_TASKS}
        self._camera: OffscreenCamera | None = None
        if render:
            self._camera = OffscreenCamera(
                self._mujoco, self._model, camera=CAMERA, size=image_size, upside_down=True
            )
        self._full: NDArray[np.float64] | None = None
        self._expert: Any = None

    def reset(self, seed: int) -> Observation:
        """Begin the episode of `seed`. See `Environment.reset`."""
        env = self._env
        env.seed(seed)
        env._freeze_rand_vec = False
        self._restart()
        env.reset_model()
        env._freeze_rand_vec = True
        self._restart()
        env.reset_model()
        self._mujoco.mj_forward(self._model, self._data)
        for site in env._target_site_config:
            env._set_pos_site(*site)
        env.curr_path_length = 0
        env._prev_obs = env._get_curr_obs_combined_no_goal()
        self._full = np.asarray(env._get_obs(), dtype=np.float64)
        return self._observe()

    def step(self, action: Action) -> StepResult:
        """Apply an action (4,) for 1/80 s. See `Environment.step`."""
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (self.action_dim,) or not np.isfinite(action).all():
            raise SimulatorError(
                f"{self.name} takes finite actions of shape (4,), not {action.shape} with values {action}"
            )
        if self._full is None or self._env.curr_path_length >= self.max_steps:
            raise SimulatorError(f"{self.name}: the episode is over or never began; call reset(seed)")
        self._full, _, _, truncated, info = self._env.step(np.clip(action, -1.0, 1.0))
        return StepResult(self._observe(), success=bool(info["success"]), done=bool(truncated))

    def render(self) -> Image:
        """Return the view of `corner2`, uint8 (image_size, image_size, 3). See `Environment.render`."""
        if self._camera is None:
            raise SimulatorError(f"{self.name} was made with render=False; it draws no images")
        return self._camera.render(self._data)

    def close(self) -> None:
        """Free graphics memory."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None

    def layout(self) -> NDArray[np.float64]:
        """Return the coordinates of object and goal drawn by the seed, in meters; their number varies."""
        return np.array(self._env._last_rand_vec, dtype=np.float64)

    def expert_action(self) -> Action:
        """Return the action (4,) of the scripted expert, which knows object and goal, clipped to [-1, 1]."""
        if self._expert is None:
            from metaworld.policies import ENV_POLICY_MAP

            expert: Any = ENV_POLICY_MAP[self._task_name]
            self._expert = expert()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Constant.s. may be too high")
            action = np.asarray(self._expert.get_action(self._full), dtype=np.float32)
        return np.clip(action, -1.0, 1.0)

    def provenance(self) -> dict[str, Any]:
        """Return the versions of the simulator and the settings of its renderer."""
        return {
            "versions": {package: version(package) for package in ("metaworld", "mujoco")},
            "renderer": {
                **SETTINGS,
                "camera": CAMERA,
                "camera_position": list(CAMERA_POSITION),
                "turned": 180,
            },
        }

    def _restart(self) -> None:
        for field, values in self._pristine.items():
            getattr(self._model, field)[:] = values
        self._mujoco.mj_resetData(self._model, self._data)

    def _observe(self) -> Observation:
        assert self._full is not None
        observation: Observation = {
            "observation.state": self._full[: self.state_dim].astype(np.float32),
            "task": self.task,
        }
        if self._camera is not None:
            image = self._camera.render(self._data).transpose(2, 0, 1)
            observation[f"{IMAGES}{CAMERA}"] = np.ascontiguousarray(image)
        return observation


def _construct(name: str) -> Any:
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ImportError as error:
        raise SimulatorError(
            f"Meta-World cannot be imported ({error}); install it with `pip install 'policysmith[sim]'`"
        ) from error
    env = ALL_V3_ENVIRONMENTS[name]()
    env._set_task_called = True
    env.seeded_rand_vec = True
    env._partially_observable = False
    del env.sawyer_observation_space
    return env
