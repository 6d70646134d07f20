from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...schemas.errors import SpecError
from ...schemas.part import MOST_LAYERS, Count, HeadConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import ActionHead, Facts, Feature
from ..features import action_spec, chunk_size, features_of, masked_mean
from ..shares import WHOLE, Shares


class Oft(ActionHead):
    """Parallel decoding: regression from query tokens of a model (OpenVLA-OFT, Kim et al., 2025).

    The N tokens (B, N, D) are divided among the H steps, N / H consecutive ones each, and pass side by side
    through a residual MLP: norm, linear and ReLU to `width`, residual blocks x + relu(linear(norm x)), norm,
    linear to A.
    """

    accepts = (Kind.TOKENS,)
    averages_values = True

    class Config(HeadConfig):
        type: Literal["oft"]
        loss: Literal["l1", "l2"] = "l1"
        """Absolute or squared error, in normalized units."""
        width: Count | None = None
        """Size of the hidden layers; by default that of a token."""
        blocks: Annotated[int, Field(ge=0, le=MOST_LAYERS)] = 2
        """Number of residual blocks."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._key, spec, each = _query_tokens(config, inputs)
        self._horizon, action_dim = chunk_size(inputs)
        width = config.width or spec.width
        self.norm_in = nn.LayerNorm(each * spec.width)
        self.linear_in = nn.Linear(each * spec.width, width)
        self.residual = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())
            for _ in range(config.blocks)
        )
        self.norm_out = nn.LayerNorm(width)
        self.linear_out = nn.Linear(width, action_dim)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `action` (B, H, A); raise SpecError unless the tokens divide among the steps."""
        _query_tokens(config, inputs)
        return {"action": action_spec(inputs)}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="oft", reads=["model.queries"], width=16)

    def loss(
        self,
        features: Mapping[str, Feature],
        actions: Tensor,
        is_pad: Tensor,
        shares: Shares = WHOLE,
    ) -> dict[str, Tensor]:
        """Return the mean error over the values that are not padding."""
        predicted, target = self.sample(features).float(), actions.float()
        error = F.l1_loss if self.config.loss == "l1" else F.mse_loss
        errors = error(predicted, target, reduction="none")
        return {"loss": masked_mean(errors, is_pad, shares.get("values"))}

    def sample(self, features: Mapping[str, Feature], generator: torch.Generator | None = None) -> Tensor:
        """Return the predicted chunk (B, H, A), independent of the generator."""
        feature, dtype = features[self._key], self.linear_in.weight.dtype
        tokens = feature.values.to(dtype)
        if feature.mask is not None:
            tokens = tokens.masked_fill(~feature.mask[..., None], 0.0)
        steps = tokens.reshape(tokens.shape[0], self._horizon, -1)  # (B, H, N / H * D)
        hidden = F.relu(self.linear_in(self.norm_in(steps)))
        for block in self.residual:
            hidden = hidden + block(hidden)
        predicted: Tensor = self.linear_out(self.norm_out(hidden))
        return predicted


def _query_tokens(config: Oft.Config, inputs: Specs) -> tuple[str, Spec, int]:
    """Return name and spec of the query tokens, and their number per step."""
    features = features_of(inputs)
    (key, spec), *others = features.items()
    horizon, _ = chunk_size(inputs)
    count = spec.dims[1]
    if others:
        raise SpecError(
            f"`oft` reads one sequence of query tokens, and there are {len(features)}: {', '.join(features)}",
            field="reads",
            label="one at a time",
            help="read the query tokens of one model, such as `reads: [vlm.queries]`",
        )
    if not isinstance(count, int) or count % horizon:
        raise SpecError(
            f"{count} tokens cannot be divided among the {horizon} steps of a chunk",
            field="reads.0",
            source=key,
            label=f"`{key}` is {spec}",
            help=f"have the model fill {horizon} query tokens, or a multiple, such as `queries: {horizon}`",
        )
    return key, spec, count // horizon
