"""The transformer of Diffusion Policy: the chunk attends to time and features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ...schemas.errors import SpecError
from ...schemas.part import MOST_LAYERS, Count, Depth, NetworkConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Context, Facts, Feature, Network
from ..denoising.heads import time_scale
from ..features import action_spec, chunk_size, features_of
from ..layers.basic import joined_mask, mlp, sinusoids
from ..layers.sequences import Joined, joined_spec
from ..layers.transformer import LayerOptions, TransformerLayer, check_heads


class DiffusionTransformer(Network):
    """The time-series diffusion transformer of Diffusion Policy (Chi et al., 2023).

    The time and the features are tokens of one sequence, which an encoder of `encoder_depth` layers mixes (with none, each
    passes a multi-layer perceptron). The steps of the chunk are those of another: each attends to itself, to earlier
    steps, and to the first sequence. All tokens get learned positions, those of features where their number is fixed.
    Steps that are hidden are attended to by none but themselves.
    """

    accepts = (Kind.TOKENS, Kind.POOLED)

    class Config(LayerOptions, NetworkConfig):
        """The transformer of Diffusion Policy: the chunk attends to time and features."""

        type: Literal["transformer"]
        """Denoise by an encoder-decoder transformer."""
        width: Count = 256
        """Size of a token of the transformer."""
        depth: Depth = 8
        """Layers of the decoder."""
        encoder_depth: Annotated[int, Field(ge=0, le=MOST_LAYERS)] = 0
        """Layers of the encoder of time and features."""
        attention: Literal["causal", "full"] = "causal"
        """Whether a step of the chunk sees later ones."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        horizon, action_dim = chunk_size(inputs)
        features, width = features_of(inputs), config.width
        self._time_scale = time_scale(facts)
        self.joined = Joined(features, width)
        count = joined_spec(features, width).dims[1]
        self.positions = nn.Parameter(torch.randn(1, count, width) * 0.02) if isinstance(count, int) else None
        self.encoder = nn.ModuleList(TransformerLayer(config, width) for _ in range(config.encoder_depth))
        if not config.encoder_depth:
            self.perceptron = mlp([width, 4 * width, width], "mish")
        self.action_in = nn.Linear(action_dim, width)
        self.action_positions = nn.Parameter(torch.randn(1, horizon, width) * 0.02)
        self.layers = nn.ModuleList(
            TransformerLayer(config, width, ("self", "context")) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.action_out = nn.Linear(width, action_dim)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """`action` (B, H, A); raises SpecError where the heads cannot share the width."""
        features_of(inputs)
        check_heads(config.width, config.heads)
        if config.width % 2:
            raise SpecError(
                f"a width of {config.width} cannot hold sines and cosines", field="width", label="odd"
            )
        return {"action": action_spec(inputs)}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="transformer", width=32, depth=2, heads=2, encoder_depth=1)

    def encode(self, features: Mapping[str, Feature]) -> Context:
        """All features as one sequence, `tokens` (B, M, D), with its `mask` (B, M) unless every token is valid."""
        tokens, mask = self.joined(features)
        if self.positions is not None:
            tokens = tokens + self.positions
        return {"tokens": tokens} if mask is None else {"tokens": tokens, "mask": mask}

    def forward(self, chunk: Tensor, time: Tensor, context: Context, is_pad: Tensor | None = None) -> Tensor:
        """Chunk (B, H, A) and time (B,) -> (B, H, A), float32."""
        dtype = self.action_in.weight.dtype
        told = sinusoids(time, self.config.width, self._time_scale, ends="both").to(dtype)[:, None]
        mask = joined_mask((told, None), (context["tokens"], context.get("mask")))
        seen = torch.cat([told, context["tokens"]], dim=1)  # (B, 1 + M, D)
        for layer in self.encoder:
            seen = layer(seen, mask)
        if not self.config.encoder_depth:
            seen = self.perceptron(seen)
        tokens = self.action_in(chunk.to(dtype)) + self.action_positions
        shown = self._shown(tokens, is_pad)
        for layer in self.layers:
            tokens = layer(tokens, shown, seen, mask)
        out: Tensor = self.action_out(self.norm(tokens))
        return out.float()

    def _shown(self, tokens: Tensor, is_pad: Tensor | None) -> Tensor | None:
        """Which steps each sees (B, H, H); None where all see all."""
        batch, horizon = tokens.shape[:2]
        if self.config.attention == "full" and is_pad is None:
            return None
        shown = tokens.new_ones(horizon, horizon, dtype=torch.bool)
        if self.config.attention == "causal":
            shown = shown.tril()
        shown = shown.expand(batch, -1, -1)
        if is_pad is None:
            return shown
        itself = torch.eye(horizon, dtype=torch.bool, device=tokens.device)
        return shown & (~is_pad[:, None] | itself)
