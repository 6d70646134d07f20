"""Features by name, the size of a chunk, and masked losses, for heads, networks and necks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from torch import Tensor

from ..schemas.errors import SpecError
from ..schemas.specs import FEATURES, Kind, Range, Spec, Specs
from .base import Feature


def features_of(inputs: Specs) -> dict[str, Spec]:
    """Return the features among the inputs of a head, in order; raise SpecError if there are none."""
    features = {key: spec for key, spec in inputs.items() if spec.kind in FEATURES}
    if not features:
        raise SpecError("the head has no features to read", field="reads", label="no features")
    return features


def find_feature(entry: str, inputs: Specs, kinds: Sequence[Kind]) -> str | None:
    """Return the input that `vision` or `vision.tokens` names; among several outputs, the best kind."""
    if "." in entry:
        return entry if entry in inputs else None
    offered = {key: spec for key, spec in inputs.items() if key.partition(".")[0] == entry}
    return next((key for kind in kinds for key, spec in offered.items() if spec.kind is kind), None)


def select(entries: Iterable[str], inputs: Specs, kinds: Sequence[Kind], field: str) -> dict[str, Spec]:
    """Return the inputs that an option names; raise SpecError, located at the entry, for an unknown one."""
    found: dict[str, Spec] = {}
    for position, entry in enumerate(entries):
        key = find_feature(entry, inputs, kinds)
        if key is None or inputs[key].kind not in kinds:
            raise SpecError(
                f"`{entry}` is not among the features that are read, or is none of {' or '.join(kinds)}",
                field=f"{field}.{position}",
                label="not read" if key is None else f"is {inputs[key]}",
                help=f"features are: {', '.join(f'{k} ({s.kind})' for k, s in inputs.items() if s.kind in FEATURES)}",
            )
        found[key] = inputs[key]
    return found


def common_steps(states: Specs) -> int:
    """Return the number of observation steps of states; raise SpecError if they differ."""
    source, first = next(iter(states.items()))
    for key, spec in states.items():
        if spec.dims[1] != first.dims[1]:
            raise SpecError(f"`{key}` is {spec} and `{source}` is {first}; their steps differ", source=key)
    assert isinstance(first.dims[1], int)
    return first.dims[1]


def sequence_specs(count: int, width: int, why: str) -> dict[str, Spec]:
    """Return the specs of `tokens` (B, N, D) and their concatenation, `pooled` (B, N * D)."""
    return {
        "pooled": Spec(Kind.POOLED, ("B", count * width), why),
        "tokens": Spec(Kind.TOKENS, ("B", count, width), why),
    }


def sequence_features(tokens: Tensor, outputs: Collection[str]) -> dict[str, Feature]:
    """Return `tokens` (B, N, D) and their concatenation, `pooled` (B, N * D), if named in `outputs`."""
    made = {"pooled": Feature(tokens.flatten(1)), "tokens": Feature(tokens)}
    return {name: made[name] for name in made if name in outputs}


def action_spec(inputs: Specs) -> Spec:
    """Return the spec of the action chunk."""
    return inputs["action"]


def chunk_size(inputs: Specs) -> tuple[int, int]:
    """Return horizon H and action dimension A."""
    _, horizon, width = action_spec(inputs).dims
    assert isinstance(horizon, int)
    assert isinstance(width, int)
    return horizon, width


def largest_action(inputs: Specs) -> float | None:
    """Return the largest absolute value of the actions of the training data; None if it is unknown or 0."""
    bounds = action_spec(inputs).bounds
    return None if bounds is None else max(-bounds[0], bounds[1]) or None


def require_bound(inputs: Specs, bound: float, field: str, instead: str) -> None:
    """Raise SpecError if predictions within +-`bound` cannot reach every action of the training data.

    This includes actions that a transform changed to an unknown range. `field` is the option of the bound,
    and `instead` begins the cure.
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
    """Return the steps (B, H) that consist of padding, for is_pad (B, H, A)."""
    return is_pad.all(-1)


def masked_mean(errors: Tensor, is_pad: Tensor, share: Tensor | None = None) -> Tensor:
    """Return the mean of errors (B, H, A) where is_pad (B, H, A) is False, times `share`, or 0."""
    total = errors.masked_fill(is_pad, 0.0).sum()
    mean = total / (~is_pad).sum().clamp_min(1)
    return mean if share is None else mean * share
