"""Fast, reproducible rendering of a MuJoCo model into memory through EGL.

MuJoCo chooses its graphics library when it is first imported, by the environment variable `MUJOCO_GL`.
`import_mujoco` sets it and is the only way this package imports MuJoCo. OSMesa is rejected: freeing one
renderer there silently corrupts the images of all others in the process.

Shadows, reflections, skybox and multisampling are off; they take nine tenths of the time at 128 pixels. A
policy must be evaluated with the renderer of its demonstrations, so `SETTINGS` is recorded with them.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import numpy as np

from ...schemas.errors import SimulatorError
from .base import Image

EGL_LIBRARY = "libEGL.so.1"
EGL_HELP = "install it with `apt-get install -y libegl1 libgl1 libegl-mesa0`"
SETTINGS = {"library": "egl", "offsamples": 0, "shadowsize": 0, "shadow": 0, "reflection": 0, "skybox": 0}
MAX_GEOMS = 2000

_open: WeakSet[OffscreenCamera] = WeakSet()


def import_mujoco(*, render: bool) -> Any:
    """Import MuJoCo, with EGL if `render`, and return the module.

    Raises:
        SimulatorError: MuJoCo is not installed, EGL is missing, or another graphics library is selected.
    """
    if not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = "egl" if render or _has_egl() else "disable"
    if render:
        _require_egl()
    try:
        import mujoco
    except ImportError as error:
        raise SimulatorError(
            f"the simulator MuJoCo cannot be imported ({error}); "
            "install it with `pip install 'policysmith[sim]'`"
        ) from error
    if render and _loaded_library(mujoco) != "egl":
        raise SimulatorError(
            f"MuJoCo was imported before with the graphics library `{_loaded_library(mujoco)}`; "
            "set MUJOCO_GL=egl before Python starts"
        )
    return mujoco


class OffscreenCamera:
    """A fixed camera of a model; its images are rotated by 180 degrees if it is mounted upside down.

    Raises:
        SimulatorError: EGL cannot open a context.
    """

    def __init__(self, mujoco: Any, model: Any, *, camera: str, size: int, upside_down: bool) -> None:
        self._camera, self._upside_down = camera, upside_down
        model.vis.quality.offsamples = SETTINGS["offsamples"]
        model.vis.quality.shadowsize = SETTINGS["shadowsize"]
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        try:
            self._renderer = mujoco.Renderer(model, height=size, width=size, max_geom=MAX_GEOMS)
        except Exception as error:
            raise SimulatorError(f"EGL cannot open a graphics context ({error}); {EGL_HELP}") from error
        flags = self._renderer.scene.flags
        for name in ("SHADOW", "REFLECTION", "SKYBOX"):
            flags[getattr(mujoco.mjtRndFlag, f"mjRND_{name}")] = SETTINGS[name.lower()]
        if not _open:
            atexit.register(_close_all)
        _open.add(self)

    def render(self, data: Any) -> Image:
        """Return the view of the simulation state `data`, uint8 (size, size, 3)."""
        self._renderer.update_scene(data, camera=self._camera)
        image: Image = self._renderer.render()
        return np.ascontiguousarray(image[::-1, ::-1] if self._upside_down else image)

    def close(self) -> None:
        """Free the graphics context."""
        self._renderer.close()
        _open.discard(self)


def _close_all() -> None:
    """Free all renderers. Registered after MuJoCo's exit handler, so run before the display closes."""
    for camera in tuple(_open):
        with suppress(Exception):
            camera.close()


def _has_egl() -> bool:
    try:
        ctypes.CDLL(EGL_LIBRARY)
    except OSError:
        return False
    return True


def _require_egl() -> None:
    chosen = os.environ["MUJOCO_GL"].strip().lower()
    if "mujoco" not in sys.modules and chosen != "egl":
        reason = "; under OSMesa, closing one renderer corrupts the images of all others"
        raise SimulatorError(
            f"images are rendered with EGL only, but MUJOCO_GL is `{chosen}`"
            f"{reason if chosen == 'osmesa' else ''}: unset it or set MUJOCO_GL=egl"
        )
    if not _has_egl():
        raise SimulatorError(f"rendering needs the graphics library EGL ({EGL_LIBRARY}): {EGL_HELP}")


def _loaded_library(mujoco: Any) -> str:
    context = getattr(mujoco.gl_context, "GLContext", None)
    return "none" if context is None else str(context.__module__).rpartition(".")[2]
