"""Samples of several robots in one batch, in a common format.

States and actions have the width of the widest robot and are padded with zeros for the others; a missing
state is all zeros. Cameras have common names and sizes; images of a missing one are black. `embodiment` is the number of the robot, and
`action_dim_is_pad` (A,) marks padded dimensions of the action.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...components.embodiments import ACTION_PADDING, EMBODIMENT, ids_of, pad_width
from ...components.features import chunk_size
from ...components.pixels import resize_images
from ...schemas.errors import SpecError
from ...schemas.specs import Kind, Spec, Specs
from ...schemas.wording import did_you_mean


@dataclass(frozen=True)
class Robot:
    """One of several robots: its number among the sorted names, its own specs, and the common ones."""

    name: str
    number: int
    own: Specs
    common: Specs

    @property
    def action_dim(self) -> int:
        """Number of its own action dimensions."""
        return chunk_size(self.own)[1]

    def to_common(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Convert a sample, with values (T, ...), into the common format; `action` may be absent."""
        values = dict(sample)
        for key, spec in self.common.items():
            if spec.kind is Kind.STATE and key not in self.own:
                values[key] = torch.zeros(self._steps(spec), spec.width)
            elif key in sample and spec.kind in (Kind.STATE, Kind.ACTION):
                values[key] = pad_width(sample[key], spec.width)
            elif key in sample and spec.kind is Kind.IMAGE:
                values[key] = resize_images(sample[key][None], self._size(spec))[0]
            elif spec.kind is Kind.IMAGE:
                values[key] = torch.zeros(self._steps(spec), 3, *self._size(spec), dtype=torch.uint8)
        values[EMBODIMENT] = torch.tensor(self.number)
        values[ACTION_PADDING] = self.action_padding
        return values

    def batch_to_common(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Convert states (B, T, S) and actions (B, H, A) into the common format."""
        count, values = len(batch["action"]), dict(batch)
        for key, spec in self.common.items():
            if spec.kind is Kind.STATE and key not in self.own:
                values[key] = torch.zeros(count, self._steps(spec), spec.width)
            elif key in batch and spec.kind in (Kind.STATE, Kind.ACTION):
                values[key] = pad_width(batch[key], spec.width)
        values[EMBODIMENT] = torch.full((count,), self.number)
        values[ACTION_PADDING] = self.action_padding.expand(count, -1)
        return values

    @property
    def action_padding(self) -> Tensor:
        """Mask of the action dimensions that the robot lacks, bool (A,)."""
        return torch.arange(self.common["action"].width) >= self.action_dim

    def _steps(self, spec: Spec) -> int:
        steps = spec.dims[1]
        assert isinstance(steps, int)
        return steps

    def _size(self, spec: Spec) -> tuple[int, int]:
        height, width = spec.dims[-2:]
        assert isinstance(height, int)
        assert isinstance(width, int)
        return height, width


class Robots:
    """All robots of a policy, by name; empty for a policy for one robot."""

    def __init__(self, own: Mapping[str, Specs], common: Specs) -> None:
        """Create the robots, numbered by their sorted names, from the `own` specs of each and the `common` ones."""
        names = sorted(own)
        self._robots = {name: Robot(name, number, own[name], common) for number, name in enumerate(names)}

    @classmethod
    def from_json(cls, own: Mapping[str, Any] | None, common: Specs) -> Robots:
        """Read the robots from `config.json`."""
        read = {
            name: {key: Spec.from_json(s) for key, s in specs.items()} for name, specs in (own or {}).items()
        }
        return cls(read, common)

    def to_json(self) -> dict[str, Any] | None:
        """Return the robots for `config.json`; None if there are none."""
        own = {
            name: {key: spec.to_json() for key, spec in robot.own.items()}
            for name, robot in self._robots.items()
        }
        return own or None

    def __len__(self) -> int:
        return len(self._robots)

    @property
    def names(self) -> tuple[str, ...]:
        """Names, in the order of their numbers."""
        return tuple(self._robots)

    def find(self, name: Any) -> Robot:
        """Return the robot called `name`, or raise SpecError if there is none."""
        robot = self._robots.get(name) if isinstance(name, str) else None
        if robot is not None:
            return robot
        listed = ", ".join(f"`{known}`" for known in self.names)
        if name is None:
            raise SpecError(
                f"`{EMBODIMENT}` is missing, and the policy is for several robots",
                help=f"name one of {listed}",
            )
        meant = did_you_mean(name, self.names) if isinstance(name, str) else ""
        raise SpecError(
            f"the policy has no robot {name!r}", field=EMBODIMENT, help=f"{meant} it has {listed}".lstrip()
        )

    def split(self, batch: Mapping[str, Any], actions: Tensor) -> Iterator[tuple[str | None, Tensor]]:
        """Yield each robot of a batch with its own actions (N, H, A), or None with all actions."""
        if not self:
            yield None, actions
        for number, (name, robot) in enumerate(self._robots.items()):
            own = actions[ids_of(batch) == number, :, : robot.action_dim]
            if len(own):
                yield name, own

    def action_padding(self, ids: Tensor) -> Tensor:
        """Return the mask of the action dimensions that the robots `ids` (B,) lack, bool (B, A)."""
        table = torch.stack([robot.action_padding for robot in self._robots.values()])
        return table.to(ids.device)[ids]
