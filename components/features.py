"""What heads, networks and necks share: features by name, the size of a chunk, and losses over the values that count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from ..schemas.errors import SpecError
from ..schemas.specs import FEATURES, Kind, Range, Spec, Specs


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


def largest(inputs: Specs) -> float | None:
    """Return the largest absolute value of the actions of the training data; None where it is unknown, or 0."""
    bounds = action_spec(inputs).bounds
    return None if bounds is None else max(-bounds[0], bounds[1]) or None


def require_bound(inputs: Specs, bound: float, field: str, instead: str) -> None:
    """Raise SpecError where a head that predicts within +-`bound`, by its option `field`, cannot reach every action of
    the training data, or nothing is known of actions that a transform changed. `instead` begins the cure.
    """
    spec = action_spec(inputs)
    if spec.bounds is None and spec.range is not Range.CHANGED:
        return
    if spec.bounds is None:
        problem, label = "a transform changes them to an unknown range", "unknown range"
    else:
        low, high = spec.bounds
        if max(-low, high) <= bound * (1.0 + 1e-4):
            return
        problem = label = f"those of the training data reach from {low:.4g} to {high:.4g}"
    raise SpecError(
        f"actions are predicted between {-bound:g} and {bound:g}, but {problem}",
        field=field,
        source="action",
        trait="range",
        label=label,
        help=f"{instead} bring actions to that range by `{{type: normalize, modes: {{action: min_max}}}}`",
    )


def padded_steps(is_pad: Tensor) -> Tensor:
    """Steps (B, H) of which no value counts, for is_pad (B, H, A)."""
    return is_pad.all(-1)


def masked_mean(errors: Tensor, is_pad: Tensor, share: Tensor | None = None) -> Tensor:
    """Mean of errors (B, H, A) over the values where is_pad (B, H, A) is False, times `share`; 0 where all is padding."""
    total = errors.masked_fill(is_pad, 0.0).sum()
    mean = total / (~is_pad).sum().clamp_min(1)
    return mean if share is None else mean * share
