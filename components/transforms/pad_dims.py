from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.part import PartConfig
from ...schemas.specs import Range, Spec, Specs
from ..base import Batch, Facts, Transform
from ..embodiments import ACTION_PADDING
from ..vectors.specs import changed_spec, find_vector


class PadDims(Transform):
    """Zero padding of states and actions to the width of a pretrained policy (pi0: 32).

    Losses exclude padded dimensions of the action: `action_dim_is_pad` (B, A) is True there. The inverse
    removes them.
    """

    class Config(PartConfig):
        type: Literal["pad_dims"]
        sizes: dict[str, Annotated[int, Field(ge=1)]] = Field(min_length=1)
        """Width by key, such as `{observation.state: 32, action: 32}`."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._widths = {key: inputs[key].width for key in config.sizes}

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the inputs at the new widths; raise SpecError for an unknown key or one that is wider."""
        found = {}
        for key, size in config.sizes.items():
            spec = find_vector(key, inputs, f"sizes.{key}")
            if spec.width > size:
                raise SpecError(
                    f"`{key}` has {spec.width} dimensions, more than {size}",
                    field=f"sizes.{key}",
                    source=key,
                    label=f"`{key}` has {spec.width}",
                    help=f"raise it to {spec.width} or more",
                )
            padded = changed_spec(spec, f"padded to {size}", size)
            if spec.bounds is not None:
                padded = replace(padded, bounds=(min(spec.bounds[0], 0.0), max(spec.bounds[1], 0.0)))
            found[key] = replace(padded, range=spec.range) if spec.range is Range.NORMALIZED else padded
        return {**inputs, **found}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="pad_dims", sizes={"observation.state": 8, "action": 4})

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Return a padded batch, with `action_dim_is_pad` if the action is padded, also at deployment."""
        sizes = self.config.sizes
        padded = {
            key: F.pad(batch[key], (0, sizes[key] - batch[key].shape[-1])) for key in sizes if key in batch
        }
        tensors = [value for value in batch.values() if isinstance(value, Tensor)]
        if "action" not in sizes or not tensors:
            return {**batch, **padded}
        shape, device = (tensors[0].shape[0], self._widths["action"]), tensors[0].device
        known = batch.get(ACTION_PADDING, torch.zeros(shape, dtype=torch.bool, device=device))
        mask = F.pad(known, (0, sizes["action"] - shape[1]), value=True)
        return {**batch, **padded, ACTION_PADDING: mask}

    def inverse(self, batch: Batch) -> dict[str, Any]:
        """Return a batch without the padding."""
        widths = {
            **self._widths,
            **({ACTION_PADDING: self._widths["action"]} if "action" in self._widths else {}),
        }
        return {**batch, **{key: batch[key][..., :width] for key, width in widths.items() if key in batch}}
