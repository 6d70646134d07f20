"""The graphics library, and the message if it is missing. Each case has its own process."""

from __future__ import annotations

import pytest

from .processes import run_alone

pytestmark = pytest.mark.sim

OPEN = """
from policysmith.builder.simulation.base import make
from policysmith.schemas.errors import SimulatorError
try:
    environment = make("metaworld/drawer-open-v3", image_size=32, render={render})
    environment.reset(0)
    print("opened", sorted(environment.reset(0)))
except SimulatorError as error:
    print("refused:", error)
"""
WITHOUT_EGL = """
import policysmith.builder.simulation.offscreen as offscreen
offscreen.EGL_LIBRARY = "libNoSuchGraphics.so.1"
"""
WITHOUT = """
import sys
sys.modules[{module!r}] = None
"""


def test_egl_is_chosen_unasked_and_nothing_is_printed_at_exit() -> None:
    result = run_alone(OPEN.format(render=True))
    assert result.stdout.startswith("opened ['observation.images.corner2'")
    assert result.stderr == ""


def test_osmesa_is_refused() -> None:
    message = run_alone(OPEN.format(render=True), MUJOCO_GL="osmesa").stdout
    assert "MUJOCO_GL is `osmesa`" in message
    assert "corrupts the images" in message
    assert "set MUJOCO_GL=egl" in message


def test_missing_egl_names_the_packages() -> None:
    message = run_alone(WITHOUT_EGL + OPEN.format(render=True)).stdout
    assert message.startswith("refused: rendering needs the graphics library EGL")
    assert "apt-get install -y libegl1 libgl1 libegl-mesa0" in message


def test_a_blind_policy_needs_no_graphics_library() -> None:
    result = run_alone(WITHOUT_EGL + OPEN.format(render=False))
    assert result.stdout.strip() == "opened ['observation.state', 'task']"


def test_a_seeing_environment_may_follow_a_blind_one() -> None:
    result = run_alone(OPEN.format(render=False) + OPEN.format(render=True), MUJOCO_GL="")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["opened", "opened"]


@pytest.mark.parametrize("module", ["metaworld", "mujoco"])
def test_a_missing_simulator_names_the_extra(module: str) -> None:
    message = run_alone(WITHOUT.format(module=module) + OPEN.format(render=True)).stdout
    assert message.startswith("refused: ")
    assert "pip install 'policysmith[sim]'" in message


def test_mujoco_already_on_another_library_is_refused() -> None:
    code = "import os\nos.environ['MUJOCO_GL'] = 'disable'\nimport mujoco\nos.environ['MUJOCO_GL'] = 'egl'\n"
    message = run_alone(code + OPEN.format(render=True)).stdout
    assert "imported before with the graphics library `none`" in message
