"""Hide the state at random."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ...schemas.errors import SpecError
from ...schemas.part import PartConfig
from ...schemas.specs import Kind, Range, Spec, Specs
from ..base import Batch, Facts, Transform
from ..vectors.specs import chosen


class StateDropout(Transform):
    """Sets all states of some samples to zero in training, so that a policy learns to look (GR00T).

    Zero is the middle of the data only after `normalize`, so that it has to come after it.
    """

    class Config(PartConfig):
        """Hide the state at random."""

        type: Literal["state_dropout"]
        """Hide the states of some samples while training; after `normalize`."""
        p: float = Field(default=0.2, ge=0.0, le=1.0)
        """Probability that a sample loses its states, all of them at all steps."""
        keys: list[str] | None = Field(default=None, min_length=1)
        """States to hide together; by default all of them."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._keys = tuple(chosen(config.keys, inputs, (Kind.STATE,)))

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """All inputs as they are; raises SpecError for an unknown key, and for a state that is not normalised."""
        for key, spec in chosen(config.keys, inputs, (Kind.STATE,)).items():
            if spec.range is not Range.NORMALISED:
                raise SpecError(
                    f"`state_dropout` sets states to zero, but `{key}` is not normalised: zero is not its middle",
                    source=key,
                    trait="range",
                    label="too early",
                    help="put it after `normalize`",
                )
        return dict(inputs)

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="state_dropout", p=0.5)

    def forward(self, batch: Batch) -> dict[str, Any]:
        """A new batch, in training with some samples' states at zero."""
        keys = [key for key in self._keys if key in batch]
        if not self.training or not keys:
            return dict(batch)
        first = batch[keys[0]]
        hidden = self.draws(batch, first).uniform(1)[..., None] < self.config.p
        return {**batch, **{key: batch[key].masked_fill(hidden, 0.0) for key in keys}}
