from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ...schemas.errors import SpecError
from ...schemas.part import PartConfig
from ...schemas.specs import Kind, Range, Spec, Specs
from ..base import Batch, Facts, Transform
from ..vectors.specs import select_vectors


class StateDropout(Transform):
    """Random zeroing of all states of a sample in training, so that a policy relies on images (GR00T).

    Must follow `normalize`, because only then zero is the middle of the data.
    """

    class Config(PartConfig):
        type: Literal["state_dropout"]
        p: float = Field(default=0.2, ge=0.0, le=1.0)
        """Probability that a sample loses its states at all steps."""
        keys: list[str] | None = Field(default=None, min_length=1)
        """States to hide together; by default all."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._keys = tuple(select_vectors(config.keys, inputs, (Kind.STATE,)))

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return all inputs; raise SpecError for an unknown key or a state that is not normalized."""
        for key, spec in select_vectors(config.keys, inputs, (Kind.STATE,)).items():
            if spec.range is not Range.NORMALIZED:
                raise SpecError(
                    f"`state_dropout` sets states to zero, but `{key}` is not normalized, so zero is not its middle",
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
        """Return a batch in which, in training, the states of some samples are zero."""
        keys = [key for key in self._keys if key in batch]
        if not self.training or not keys:
            return dict(batch)
        first = batch[keys[0]]
        hidden = self.draws(batch, first).uniform(1)[..., None] < self.config.p
        return {**batch, **{key: batch[key].masked_fill(hidden, 0.0) for key in keys}}
