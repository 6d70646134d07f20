"""What heads, networks and necks share: features by name, the size of a chunk, and losses over the values that count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from ..schemas.errors import SpecError
from ..schemas.specs import FEATURES, Kind, Spec, Specs


def features_of(inputs: Specs) -> dict[str, Spec]:
    """The features among the inputs of a head, in order; raises SpecError where there are none."""
    features = {key: spec for key, spec in inputs.items() if spec.kind in FEATURES}
    if not features:
        raise SpecError("the head has no features to read", field="reads", label="no features")
    return features


def named(entry: str, inputs: Specs, kinds: Sequence[Kind]) -> str | None:
    """The input that `vision` or `vision.tokens` means: of several outputs, one of the kind that comes first."""
    if "." in entry:
        return entry if entry in inputs else None
    offered = {key: spec for key, spec in inputs.items() if key.partition(".")[0] == entry}
    return next((key for kind in kinds for key, spec in offered.items() if spec.kind is kind), None)


def select(entries: Iterable[str], inputs: Specs, kinds: Sequence[Kind], field: str) -> dict[str, Spec]:
    """The inputs that an option of a part names; raises SpecError, located at the entry, for one that is not there."""
    found: dict[str, Spec] = {}
    for position, entry in enumerate(entries):
        key = named(entry, inputs, kinds)
        if key is None or inputs[key].kind not in kinds:
            raise SpecError(
                f"`{entry}` is not among the features that are read, or is none of {' or '.join(kinds)}",
                field=f"{field}.{position}",
                label="not read" if key is None else f"is {inputs[key]}",
                help=f"features are: {', '.join(f'{k} ({s.kind})' for k, s in inputs.items() if s.kind in FEATURES)}",
            )
        found[key] = inputs[key]
    return found


def action_spec(inputs: Specs) -> Spec:
    """Spec of the action chunk, as the data has it."""
    return inputs["action"]


def chunk_size(inputs: Specs) -> tuple[int, int]:
    """Horizon H and action dimension A."""
    _, horizon, width = action_spec(inputs).dims
    assert isinstance(horizon, int)
    assert isinstance(width, int)
    return horizon, width


def padded_steps(is_pad: Tensor) -> Tensor:
    """Steps (B, H) of which no value counts, for is_pad (B, H, A)."""
    return is_pad.all(-1)


def masked_mean(errors: Tensor, is_pad: Tensor, share: Tensor | None = None) -> Tensor:
    """Mean of errors (B, H, A) over the values where is_pad (B, H, A) is False, times `share`; 0 where all is padding."""
    total = errors.masked_fill(is_pad, 0.0).sum()
    mean = total / (~is_pad).sum().clamp_min(1)
    return mean if share is None else mean * share
