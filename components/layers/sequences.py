"""Features that necks read: a single one, or several as one sequence of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...schemas.errors import SpecError
from ...schemas.specs import Dim, Kind, Spec, Specs
from ..base import Feature
from ..features import select
from .basic import joined_mask

Positions = Literal["none", "learned"]


def single_feature(config: Any, inputs: Specs, kinds: Sequence[Kind]) -> tuple[str, Spec]:
    """Return name and spec of the only feature that a neck reads; raise SpecError for more than one."""
    found = select(config.reads, inputs, kinds, "reads")
    if len(found) > 1:
        raise SpecError(
            f"neck `{config.type}` reads one feature, not {len(found)}",
            field="reads.1",
            label="a second feature",
            help=f"join them with a neck `{{type: concat}}` first, or use a separate neck `{config.type}` for each",
        )
    return next(iter(found.items()))


def concatenated_spec(features: Specs, width: int | None) -> Spec:
    """Return the spec of concatenated tokens (B, N, D); raise SpecError if widths differ without `width`."""
    (source, first), *others = features.items()
    for key, spec in others if width is None else ():
        if spec.width != first.width:
            raise SpecError(
                f"`{key}` is {spec} and `{source}` is {first}; tokens of one sequence have one width",
                field="width",
                source=key,
                label="the features differ in width",
                help=f"set `width`, such as {max(spec.width, first.width)}, to project each by a separate layer",
            )
    counts = [spec.dims[1] if spec.kind is Kind.TOKENS else 1 for spec in features.values()]
    fixed = [count for count in counts if isinstance(count, int)]
    total: Dim = sum(fixed) if len(fixed) == len(counts) else " + ".join(map(str, counts))
    whole = " + ".join(
        f"{count} ({key.removesuffix('.tokens').removesuffix('.pooled')})"
        for key, count in zip(features, counts, strict=True)
    )
    return Spec(Kind.TOKENS, ("B", total, width or first.width), f"tokens {whole}")


def fixed_length(spec: Spec) -> int:
    """Return the number of tokens, for learned positions; raise SpecError if it varies."""
    count = spec.dims[1]
    if not isinstance(count, int):
        raise SpecError(
            f"positions are learned for a fixed number of tokens, and it varies: {spec.why}",
            field="positions",
            label="the number of tokens varies",
            help="use `positions: none`, or resample the tokens by `{type: perceiver}` first",
        )
    return count


def learned_positions(spec: Spec) -> nn.Parameter:
    """Create positions (1, N, D) of tokens."""
    return nn.Parameter(torch.randn(1, fixed_length(spec), spec.width) * 0.02)


class ConcatTokens(nn.Module):
    """Concatenation of features to one sequence of tokens, in the given order; a pooled feature is one token.

    With a width, separate linear layers project each feature.
    """

    def __init__(self, features: Specs, width: int | None) -> None:
        super().__init__()
        self._keys = {key: key.replace(".", "_") for key in features}  # no dots in module names
        self.project = nn.ModuleDict(
            {
                self._keys[key]: nn.Linear(spec.width, width)
                for key, spec in features.items()
                if width is not None
            }
        )

    def parts(self, features: Mapping[str, Feature]) -> list[tuple[Tensor, Tensor | None]]:
        """Return tokens (B, N, D) of each feature, with their mask (B, N), if any."""
        found = []
        for key, name in self._keys.items():
            values, mask = features[key].values, features[key].mask
            tokens = values if values.ndim == 3 else values[:, None]
            if name in self.project:
                layer: Any = self.project[name]
                tokens = layer(tokens.to(layer.weight.dtype))
            found.append((tokens, mask))
        return found

    def forward(self, features: Mapping[str, Feature]) -> tuple[Tensor, Tensor | None]:
        """Return tokens (B, N, D), and their mask (B, N) unless all are valid."""
        parts = self.parts(features)
        return torch.cat([tokens for tokens, _ in parts], dim=1), joined_mask(*parts)
