"""What action heads share: their inputs by kind, the size of a chunk, and losses over the steps that count."""

from __future__ import annotations

from torch import Tensor

from ..schemas.errors import SpecError
from ..schemas.specs import Kind, Spec, Specs


def features_of(inputs: Specs) -> dict[str, Spec]:
    """The features among the inputs of a head, in order; raises SpecError where there are none."""
    features = {key: spec for key, spec in inputs.items() if spec.kind in (Kind.POOLED, Kind.TOKENS)}
    if not features:
        raise SpecError("the head has no features to read", field="reads", label="no features")
    return features


def action_spec(inputs: Specs) -> Spec:
    """Spec of the action chunk, as the data has it."""
    return inputs["action"]


def chunk_size(inputs: Specs) -> tuple[int, int]:
    """Horizon H and action dimension A."""
    _, horizon, width = action_spec(inputs).dims
    assert isinstance(horizon, int)
    assert isinstance(width, int)
    return horizon, width


def masked_mean(errors: Tensor, is_pad: Tensor) -> Tensor:
    """Mean of errors (B, H, A) over the steps where is_pad (B, H) is False; 0 where every step is padding."""
    valid = ~is_pad
    total = errors.masked_fill(is_pad[..., None], 0.0).sum()
    return total / (valid.sum() * errors.shape[-1]).clamp_min(1)
