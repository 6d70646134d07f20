from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.part import PartConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Batch, Facts, Transform
from ..embodiments import embodiments, facts_by_robot, ids_of, rows_by_robot
from ..vectors.specs import Constants, select_vectors, statistics_of

Deviation = Annotated[float, Field(ge=0.0)]


class StateNoise(Transform):
    """Gaussian noise on states in training, so that a policy relies on them less.

    `std` is in the current units of the state: standard deviations of the data after `normalize`, the robot's
    units before. With several robots, dimensions that a robot lacks, or that never move, stay unchanged.
    """

    class Config(PartConfig):
        type: Literal["state_noise"]
        std: Deviation | list[Deviation]
        """Standard deviation of the noise, for all dimensions or for each; after `normalize`, relative to the data's."""
        keys: list[str] | None = Field(default=None, min_length=1)
        """States to change; by default all."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._std = {
            key: Constants(std=config.std if isinstance(config.std, list) else [config.std] * spec.width)
            for key, spec in select_vectors(config.keys, inputs, (Kind.STATE,)).items()
        }
        self._moving: dict[str, Constants] | None = None
        if embodiments(inputs) is not None:
            robots = facts_by_robot(inputs, facts)
            self._moving = {key: _moving(key, inputs[key], robots) for key in self._std}

    @classmethod
    def measures(cls, config: Config, inputs: Specs) -> Collection[str]:
        """Return the states if there are several robots, to find the dimensions of each."""
        return () if embodiments(inputs) is None else select_vectors(config.keys, inputs, (Kind.STATE,))

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return all inputs unchanged; raise SpecError for an unknown key or a wrong number of deviations."""
        for key, spec in select_vectors(config.keys, inputs, (Kind.STATE,)).items():
            if isinstance(config.std, list) and len(config.std) != spec.width:
                raise SpecError(
                    f"{len(config.std)} deviations for the {spec.width} dimensions of `{key}`",
                    field="std",
                    source=key,
                    label=f"`{key}` has {spec.width}",
                    help="set one per dimension, or one number for all, or name a single state under `keys`",
                )
        return dict(inputs)

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="state_noise", std=0.1)

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Return a batch with noise on the states in training (float32)."""
        if not self.training:
            return dict(batch)
        return {**batch, **{key: self._disturb(batch, key) for key in self._std if key in batch}}

    def _disturb(self, batch: Batch, key: str) -> Tensor:
        values: Tensor = batch[key].float()
        normal = self.draws(batch, values, key).normal(*values.shape[1:])
        noise = self._std[key].on(values.device)["std"] * normal
        if self._moving is not None:
            moving = self._moving[key].on(values.device)["moving"]
            noise = noise.where(rows_by_robot(moving, ids_of(batch), values), 0.0)
        return values + noise


def _moving(key: str, spec: Spec, robots: Sequence[Facts]) -> Constants:
    """Return a mask (R, S) of the dimensions of a state that vary for each robot."""
    spreads = [statistics_of(key, spec, own).get("std", []) for own in robots]
    missing = [[False] * (spec.width - len(spread)) for spread in spreads]
    own = [[value > 0.0 for value in spread] for spread in spreads]
    return Constants(moving=[[*row, *rest] for row, rest in zip(own, missing, strict=True)])
