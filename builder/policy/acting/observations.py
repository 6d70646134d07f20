"""Observations of a robot: checks against those of training, and a short history."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....components.embodiments import EMBODIMENT
from ....schemas.errors import SpecError
from ....schemas.specs import Dim, Kind, Spec, Specs
from ....schemas.wording import near
from ...data.lerobot.features import STATE
from ...data.robots import Robots
from .ranges import finite


@dataclass(frozen=True)
class Observed:
    """Observations that a policy requires, and those that it reads if they are given."""

    required: Specs
    optional: Specs = field(default_factory=dict)
    robots: Robots = field(default_factory=lambda: Robots({}, {}))
    """Robots that the policy is for; each has its own specs."""

    def admit(self, observation: Mapping[str, Any], *, windowed: bool = False) -> dict[str, Any]:
        """Return the values that the policy reads, as tensors, states in float32. Leave out all others.

        Values are one time step, (3, H, W) or (S,), or `windowed`, with the time steps in front. A policy for
        several robots needs `embodiment`, the name of one.

        Raises:
            SpecError: A value is missing, of another shape or not finite, or an image is not uint8.
                Broadcasting, a fixed crop or a normalization would turn even these into actions.
        """
        admitted: dict[str, Any] = {}
        wanted = {**self.required, **self.optional}
        if self.robots:
            robot = self.robots.find(observation.get(EMBODIMENT))
            admitted[EMBODIMENT] = robot.name
            wanted = {key: robot.own[key] for key in wanted if key in robot.own}
        for key, spec in wanted.items():
            if key in observation:
                admitted[key] = _admit(key, spec, observation[key], windowed)
            elif key in self.required:
                known = {*wanted, STATE, "task"}  # a correct name is not a misspelling of another
                candidates = [given for given in observation if isinstance(given, str) and given not in known]
                close = near(key, candidates)
                raise SpecError(
                    f"the observation lacks `{key}`, which the policy reads: {_wanted(spec, windowed)}",
                    help=f"{f'is `{close}` a misspelling of it? ' if close else ''}"
                    f"given: {', '.join(f'`{given}`' for given in observation) or 'nothing'}",
                )
        return admitted

    def require(self, batch: Mapping[str, Any]) -> None:
        """Raise SpecError if a batch lacks what the policy reads; with several robots, that depends on each of them."""
        for key, spec in ({} if self.robots else self.required).items():
            if key not in batch:
                given = ", ".join(f"`{name}`" for name in batch) or "nothing"
                raise SpecError(
                    f"the batch lacks `{key}`, which the policy reads: {spec}", help=f"given: {given}"
                )


class History:
    """The latest time steps of an episode, copied, because cameras and simulators reuse their buffers."""

    def __init__(self) -> None:
        self._frames: deque[dict[str, Any]] = deque()

    def add(self, frame: Mapping[str, Any], steps: Sequence[int]) -> None:
        """Add an admitted time step, and drop those that none of `steps` reaches.

        Raises:
            SpecError: The time step is of another robot than those before.
        """
        former = self._frames[-1].get(EMBODIMENT) if self._frames else frame.get(EMBODIMENT)
        if frame.get(EMBODIMENT) != former:
            raise SpecError(
                f"the policy drives `{former}`, but this observation is of `{frame[EMBODIMENT]}`",
                help="call `reset()` before the episode of another robot, or load the policy once for each robot",
            )
        self._frames.append({k: v.clone() if isinstance(v, Tensor) else v for k, v in frame.items()})
        while len(self._frames) > 1 - min(steps):
            self._frames.popleft()

    def window(self, steps: Sequence[int]) -> dict[str, Any]:
        """Return values (T, ...) at `steps` relative to now, padded with the first; texts of now."""
        now = len(self._frames) - 1
        frames = [self._frames[max(now + step, 0)] for step in steps]
        return {
            key: value if isinstance(value, str) else torch.stack([frame[key] for frame in frames])
            for key, value in self._frames[-1].items()
        }

    def clear(self) -> None:
        """Drop all time steps."""
        self._frames.clear()


def _admit(key: str, spec: Spec, value: Any, windowed: bool) -> Any:
    if spec.kind is Kind.TEXT:
        if not isinstance(value, str):
            raise SpecError(
                f"`{key}` of the observation is {type(value).__name__}, and must be a str",
                help="give one instruction",
            )
        return value
    wanted = _shape(spec, windowed)
    try:
        # `order`: torch takes no views with negative strides, such as BGR turned into RGB
        tensor = (
            value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value, order="C"))
        )
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"`{key}` of the observation is not an array of numbers: {error}",
            help=f"give {_wanted(spec, windowed)}",
        ) from error
    if tensor.is_complex() or tensor.is_meta or tensor.layout is not torch.strided:
        kind = "on the meta device" if tensor.is_meta else "complex" if tensor.is_complex() else "sparse"
        raise SpecError(f"`{key}` of the observation is {kind}", help=f"give {_wanted(spec, windowed)}")
    is_image = spec.kind is Kind.IMAGE
    if tuple(tensor.shape) != wanted or (is_image and tensor.dtype is not torch.uint8):
        raise SpecError(
            f"`{key}` of the observation must be {_wanted(spec, windowed)}, "
            f"but it is {_dtype(tensor)} {tuple(tensor.shape)}",
            help=", ".join(
                _image_cures(tensor, wanted, windowed) if is_image else [_state_cure(tensor, wanted)]
            ),
        )
    if is_image:
        return tensor
    tensor = tensor.float()
    finite(key, tensor, "a sensor may have failed: give its last good value, or stop")
    return tensor


def _shape(spec: Spec, windowed: bool) -> tuple[Dim, ...]:
    return spec.dims[1:] if windowed else spec.dims[2:]


def _wanted(spec: Spec, windowed: bool) -> str:
    if spec.kind is Kind.TEXT:
        return "a str"
    return f"{'uint8' if spec.kind is Kind.IMAGE else 'float32'} {_shape(spec, windowed)}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _extra(shape: Sequence[int], wanted: Sequence[Dim]) -> bool:
    return len(shape) == len(wanted) + 1 and shape[0] == 1


def _image_cures(image: Tensor, wanted: tuple[Dim, ...], windowed: bool) -> list[str]:
    """Return the steps that turn an image into (..., 3, H, W)."""
    shape, cures = tuple(image.shape), []
    if _extra(shape, wanted):
        shape = shape[1:]
        cures.append("drop the leading dimension")
    if len(shape) == len(wanted) and shape != wanted:
        if shape[-1] == 3 and shape[-3] != 3:
            shape = (*shape[:-3], 3, *shape[-3:-1])
            cures.append("transpose it to channels first, `np.moveaxis(image, -1, -3)`")
        if shape[-3] != wanted[-3]:
            cures.append(f"give {wanted[-3]} channels, RGB")
        if shape[-2:] != wanted[-2:]:
            cures.append(f"resize it to the camera's size, {wanted[-2]} x {wanted[-1]} pixels (H x W)")
    if windowed and (len(shape) < len(wanted) or shape[0] != wanted[0]):
        cures.append(f"give {wanted[0]} time steps in front")
    if image.dtype is not torch.uint8:
        cures.append("give uint8, 0 to 255")
    return cures or [f"give one image {wanted}"]


def _state_cure(state: Tensor, wanted: tuple[Dim, ...]) -> str:
    if _extra(tuple(state.shape), wanted):
        return "drop the leading dimension"
    return f"give {' x '.join(map(str, wanted))} values, in the order and the units of the dataset"
