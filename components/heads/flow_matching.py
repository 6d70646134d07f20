"""Flow matching with a small diffusion transformer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Beta

from ...schemas.errors import SpecError
from ...schemas.part import HeadConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import ActionHead, Facts, Feature
from ..features import action_spec, chunk_size, features_of, masked_mean
from ..layers import Attention, mlp, sinusoids

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0.0)]


class FlowMatching(ActionHead):
    """Learns the velocity that carries noise to actions (Lipman et al., 2023), and follows it to sample.

    Time runs from noise at t = 0 to actions at t = 1, as in GR00T (pi0 counts the other way):

        x_t = (1 - t) eps + t a        v = a - eps        t = s (1 - u),  u ~ Beta(alpha, beta)

    With Beta(1.5, 1) small times, where the action is hardly known, are drawn more often. The network is a
    transformer over the chunk with AdaLN-zero (Peebles & Xie, 2023). Time, noise and integration are float32.
    """

    accepts = ("tokens", "pooled")

    class Config(HeadConfig):
        """Flow matching with a small diffusion transformer."""

        type: Literal["flow_matching"]
        """Predict actions by flow matching, with a diffusion transformer."""
        width: Count = 256
        """Size of a token of the transformer."""
        depth: Count = 4
        """Layers of the transformer."""
        heads: Count = 4
        """Attention heads; they share `width`."""
        mlp_ratio: Positive = 4.0
        """Hidden size of the feed-forward layers, in token sizes."""
        dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
        """Dropout rate in the feed-forward layers."""
        conditioning: Literal["cross_attention", "in_context"] = "cross_attention"
        """How actions see features: by attention of their own in every layer, or as tokens of the same sequence."""
        alpha: Positive = 1.5
        """First parameter of the Beta distribution of times."""
        beta: Positive = 1.0
        """Second parameter of the Beta distribution of times."""
        scale: float = Field(default=0.999, gt=0.0, le=1.0)
        """Largest time s that is trained."""
        repeats: Count = 1
        """Noises and times drawn for each sample in training; the backbones run only once for all of them."""
        steps: Count = 10
        """Euler steps when sampling."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._horizon, self._action_dim = chunk_size(inputs)
        features = features_of(inputs)
        self._keys = {key: key.replace(".", "_") for key in features}  # module names hold no dots
        width = config.width
        self.project = nn.ModuleDict()
        self.positions = nn.ParameterDict()
        for key, spec in features.items():
            name = self._keys[key]
            self.project[name] = nn.Sequential(nn.LayerNorm(spec.width), nn.Linear(spec.width, width))
            count = spec.dims[1] if spec.kind is Kind.TOKENS else 1
            if isinstance(count, int):
                self.positions[name] = nn.Parameter(torch.randn(1, count, width) * 0.02)
        self.action_in = nn.Linear(self._action_dim, width)
        self.action_positions = nn.Parameter(torch.randn(1, self._horizon, width) * 0.02)
        self.time = mlp([width, width, width], "silu")
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = _zeros(nn.Linear(width, 2 * width))
        self.action_out = _zeros(nn.Linear(width, self._action_dim))

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """`action` (B, H, A); raises SpecError where the heads cannot share the width."""
        features_of(inputs)
        if config.width % config.heads or config.width % 2:
            raise SpecError(
                f"a width of {config.width} cannot be shared by {config.heads} heads",
                field="width",
                label=f"not an even multiple of {config.heads}",
                help="choose an even `width` that is a multiple of `heads`",
            )
        return {"action": action_spec(inputs)}

    @classmethod
    def tiny(cls, directory: Path) -> Config:
        return cls.Config(type="flow_matching", width=32, depth=2, heads=2, steps=4)

    def loss(self, features: Mapping[str, Feature], actions: Tensor, is_pad: Tensor) -> dict[str, Tensor]:
        """Mean squared error of the velocity over the dimensions of all steps that are no padding."""
        context, mask = self._context(features)
        actions = actions.float()
        if self.config.repeats > 1:
            repeats = self.config.repeats
            context = context.repeat_interleave(repeats, 0)
            mask = None if mask is None else mask.repeat_interleave(repeats, 0)
            actions, is_pad = actions.repeat_interleave(repeats, 0), is_pad.repeat_interleave(repeats, 0)
        actions = actions.masked_fill(is_pad[..., None], 0.0)
        time, noise = self.draw(actions)
        at = time[:, None, None]
        velocity = self.velocity((1.0 - at) * noise + at * actions, time, context, mask, ~is_pad)
        return {"loss": masked_mean((velocity - (actions - noise)) ** 2, is_pad)}

    @torch.no_grad()
    def sample(self, features: Mapping[str, Feature], generator: torch.Generator | None = None) -> Tensor:
        """Integrate the velocity from noise, drawn by the generator, to an action chunk (B, H, A)."""
        context, mask = self._context(features)
        device = context.device if generator is None else generator.device
        shape = (len(context), self._horizon, self._action_dim)
        chunk = torch.randn(shape, generator=generator, device=device).to(context.device)
        steps = self.config.steps
        for step in range(steps):
            time = torch.full((len(chunk),), step / steps, device=chunk.device)
            chunk = chunk + self.velocity(chunk, time, context, mask) / steps
        return chunk

    def draw(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Times (B,) and noise like the actions (B, H, A), in float32."""
        config, shape = self.config, actions.shape[:1]
        if actions.device.type == "meta":  # Beta has no kernel there, and values do not matter
            drawn = torch.rand(shape, device=actions.device)
        else:
            alpha = torch.full(shape, config.alpha, device=actions.device)
            beta = torch.full(shape, config.beta, device=actions.device)
            drawn = Beta(alpha, beta, validate_args=False).sample()
        return config.scale * (1.0 - drawn), torch.randn_like(actions, dtype=torch.float32)

    def velocity(
        self, chunk: Tensor, time: Tensor, context: Tensor, mask: Tensor | None, valid: Tensor | None = None
    ) -> Tensor:
        """Velocity (B, H, A) in float32 at `chunk` (B, H, A) and `time` (B,), given the context (B, M, D).

        Context where `mask` (B, M), and steps where `valid` (B, H), is False are not attended to.
        """
        dtype = self.action_in.weight.dtype
        tokens = self.action_in(chunk.to(dtype)) + self.action_positions
        condition = nn.functional.silu(self.time(sinusoids(time, self.config.width).to(dtype)))
        if valid is not None:
            valid = torch.cat(
                [torch.ones_like(valid[:, :1]), valid[:, 1:]], dim=1
            )  # never nothing to attend to
        if self.config.conditioning == "in_context":
            valid = _joined((context, mask), (tokens, valid))
            tokens = torch.cat([context.to(tokens.dtype), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens, valid, condition, context, mask)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        out: Tensor = self.action_out(self.norm(tokens[:, -self._horizon :]) * (1.0 + scale) + shift)
        return out.float()

    def _context(self, features: Mapping[str, Feature]) -> tuple[Tensor, Tensor | None]:
        """All features as one sequence (B, M, D), with its mask (B, M) unless every token is valid."""
        dtype = self.action_in.weight.dtype
        parts = []
        for key, name in self._keys.items():
            values = features[key].values
            tokens = self.project[name]((values if values.ndim == 3 else values[:, None]).to(dtype))
            tokens = tokens + self.positions[name] if name in self.positions else tokens
            parts.append((tokens, features[key].mask))
        return torch.cat([tokens for tokens, _ in parts], dim=1), _joined(*parts)


class Block(nn.Module):
    """A transformer layer whose norms are shifted and scaled, and whose branches are gated, by the time (AdaLN-zero)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        branches = {"attention": Attention(width, config.heads)}
        if config.conditioning == "cross_attention":
            branches["cross"] = Attention(width, config.heads)
        self.branches = nn.ModuleDict(
            {**branches, "mlp": mlp([width, hidden, width], "gelu", config.dropout)}
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = _zeros(nn.Linear(width, 3 * len(self.branches) * width))

    def forward(
        self, tokens: Tensor, valid: Tensor | None, condition: Tensor, context: Tensor, mask: Tensor | None
    ) -> Tensor:
        """tokens (B, N, D), valid (B, N), condition (B, D), context (B, M, D), mask (B, M) -> (B, N, D)."""
        changes = iter(self.modulation(condition)[:, None].chunk(3 * len(self.branches), dim=-1))
        for name, branch in self.branches.items():
            shift, scale, gate = next(changes), next(changes), next(changes)
            normal = self.norm(tokens) * (1.0 + scale) + shift
            if name == "attention":
                change = branch(normal, normal, valid)
            else:
                change = branch(normal, context, mask) if name == "cross" else branch(normal)
            tokens = tokens + gate * change
        return tokens


def _zeros(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _joined(*parts: tuple[Tensor, Tensor | None]) -> Tensor | None:
    """Mask of several sequences of tokens, each with its own, end to end; None stands for all valid."""
    if all(mask is None for _, mask in parts):
        return None
    masks = [tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if m is None else m for tokens, m in parts]
    return torch.cat(masks, dim=1)
