"""Several robots in one batch: what each gives of its own, and the common form that all samples take.

States and actions are as wide as the widest robot's and end in zeros for the others; a state that a robot does not
have is all zeros. Cameras go by common names and sizes. `embodiment` says whose sample it is, `action_dim_is_pad` (A,)
which dimensions of the action are not its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...components.embodiments import ACTION_PADDING, EMBODIMENT, ids_of, padded
from ...components.features import chunk_size
from ...components.images.specs import scaled
from ...schemas.errors import SpecError
from ...schemas.specs import Kind, Spec, Specs
from ...schemas.wording import did_you_mean


@dataclass(frozen=True)
class Robot:
    """One of several robots: its number among the sorted names, its own specs, and those of all robots together."""

    name: str
    number: int
    own: Specs
    common: Specs

    @property
    def action_dim(self) -> int:
        """Dimensions of its own actions."""
        return chunk_size(self.own)[1]

    def unified(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """A sample of this robot, each value (T, ...), in the common form; `action` may be absent."""
        values = dict(sample)
        for key, spec in self.common.items():
            if spec.kind is Kind.STATE and key not in self.own:
                values[key] = torch.zeros(self._steps(spec), spec.width)
            elif key in sample and spec.kind in (Kind.STATE, Kind.ACTION):
                values[key] = padded(sample[key], spec.width)
            elif key in sample and spec.kind is Kind.IMAGE:
                values[key] = scaled(sample[key][None], self._size(spec))[0]
        values[EMBODIMENT] = torch.tensor(self.number)
        values[ACTION_PADDING] = self.action_padding
        return values

    def unified_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """States (B, T, S) and actions (B, H, A) of this robot in the common form."""
        count, values = len(batch["action"]), dict(batch)
        for key, spec in self.common.items():
            if spec.kind is Kind.STATE and key not in self.own:
                values[key] = torch.zeros(count, self._steps(spec), spec.width)
            elif key in batch and spec.kind in (Kind.STATE, Kind.ACTION):
                values[key] = padded(batch[key], spec.width)
        values[EMBODIMENT] = torch.full((count,), self.number)
        values[ACTION_PADDING] = self.action_padding.expand(count, -1)
        return values

    @property
    def action_padding(self) -> Tensor:
        """Which of the common dimensions of the action it does not have, bool (A,)."""
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
    """All robots of a policy, by name; none where its data tells no robots apart."""

    def __init__(self, own: Mapping[str, Specs], common: Specs) -> None:
        """`own` are the specs of each robot, `common` those of all together."""
        names = sorted(own)
        self._robots = {name: Robot(name, number, own[name], common) for number, name in enumerate(names)}

    @classmethod
    def from_json(cls, own: Mapping[str, Any] | None, common: Specs) -> Robots:
        """As `config.json` holds them."""
        read = {
            name: {key: Spec.from_json(s) for key, s in specs.items()} for name, specs in (own or {}).items()
        }
        return cls(read, common)

    def to_json(self) -> dict[str, Any] | None:
        """As `config.json` holds them; None where there are none."""
        own = {
            name: {key: spec.to_json() for key, spec in robot.own.items()}
            for name, robot in self._robots.items()
        }
        return own or None

    def __len__(self) -> int:
        return len(self._robots)

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of their numbers."""
        return tuple(self._robots)

    def find(self, name: Any) -> Robot:
        """The robot called so. Raises SpecError where there is none, or none is named."""
        robot = self._robots.get(name) if isinstance(name, str) else None
        if robot is not None:
            return robot
        listed = ", ".join(f"`{known}`" for known in self.names)
        if name is None:
            raise SpecError(
                f"`{EMBODIMENT}` is missing: the policy is for several robots", help=f"name one of {listed}"
            )
        meant = did_you_mean(name, self.names) if isinstance(name, str) else ""
        raise SpecError(
            f"the policy has no robot {name!r}", field=EMBODIMENT, help=f"{meant} it has {listed}".lstrip()
        )

    def split(self, batch: Mapping[str, Any], actions: Tensor) -> Iterator[tuple[str | None, Tensor]]:
        """Yield each robot of a batch with the actions (N, H, A) that are its own; all without a name where there are none."""
        if not self:
            yield None, actions
        for number, (name, robot) in enumerate(self._robots.items()):
            own = actions[ids_of(batch) == number, :, : robot.action_dim]
            if len(own):
                yield name, own

    def action_padding(self, ids: Tensor) -> Tensor:
        """Which dimensions of the action the robots ids (B,) do not have, bool (B, A)."""
        table = torch.stack([robot.action_padding for robot in self._robots.values()])
        return table.to(ids.device)[ids]
