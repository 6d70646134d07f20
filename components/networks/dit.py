"""A diffusion transformer with AdaLN-zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ...schemas.errors import SpecError
from ...schemas.part import Count, Depth, NetworkConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Context, Facts, Feature, Network
from ..denoising.heads import time_scale
from ..embodiments import EMBODIMENT, required_embodiments
from ..features import action_spec, chunk_size, features_of
from ..layers.basic import Attention, joined_mask, mlp, sinusoids, zero
from ..layers.modulation import modulated
from ..layers.per_robot import robot_linear
from ..layers.rotary import RotaryTable, rotary_table


class Dit(Network):
    """A transformer over the chunk whose layers are modulated by the time (DiT, Peebles & Xie, 2023).

    Norms are shifted and scaled, and branches gated, by layers that start at zero (AdaLN-zero), so the network starts
    as the zero function. Features are projected to its width, and get learned positions, one per token, where their
    number is fixed. With `conditioning: adaln` it is LeRobot's multi-task DiT instead: pooled features, as they are,
    stand beside the time in what modulates every layer, and there is no norm before the last one.
    """

    accepts = (Kind.TOKENS, Kind.POOLED)

    class Config(NetworkConfig):
        """A diffusion transformer with AdaLN-zero."""

        type: Literal["dit"]
        """Denoise by a diffusion transformer."""
        width: Count = 256
        """Size of a token of the transformer."""
        depth: Depth = 4
        """Layers of the transformer."""
        heads: Count = 4
        """Attention heads; they share `width`."""
        mlp_ratio: Annotated[float, Field(gt=0.0)] = 4.0
        """Hidden size of the feed-forward layers, in token sizes."""
        dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
        """Dropout rate in the feed-forward layers."""
        per_embodiment: bool = False
        """Whether each robot has weights of its own to read and to write actions; for data of several robots."""
        time_width: Annotated[int, Field(ge=2, multiple_of=2)] | None = None
        """Size of the embedded time, by default `width`; even."""
        conditioning: Literal["cross_attention", "in_context", "adaln"] = "cross_attention"
        """How actions see features: by attention of their own in every layer, as tokens of the same sequence, or with the time."""
        positions: Literal["learned", "rope"] = "learned"
        """How actions know their step: by learned positions, or by rotary queries and keys."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._horizon, action_dim = chunk_size(inputs)
        self._time_scale = time_scale(facts)
        features = features_of(inputs)
        self._keys = {key: key.replace(".", "_") for key in features}  # module names hold no dots
        width, condition = config.width, config.time_width or config.width
        self.time = mlp([condition, condition, condition], "silu")
        beside = config.conditioning == "adaln"
        condition += sum(spec.width for spec in features.values()) if beside else 0
        self.project = nn.ModuleDict()
        self.positions = nn.ParameterDict()
        for key, spec in features.items() if not beside else ():
            name = self._keys[key]
            self.project[name] = nn.Sequential(nn.LayerNorm(spec.width), nn.Linear(spec.width, width))
            count = spec.dims[1] if spec.kind is Kind.TOKENS else 1
            if isinstance(count, int):
                self.positions[name] = nn.Parameter(torch.randn(1, count, width) * 0.02)
        robots = required_embodiments(inputs, "per_embodiment") if config.per_embodiment else None
        self.action_in = robot_linear(robots, action_dim, width)
        if config.positions == "learned":
            self.action_positions = nn.Parameter(torch.randn(1, self._horizon, width) * 0.02)
        self.blocks = nn.ModuleList(Block(config, condition) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = None if beside else zero(nn.Linear(condition, 2 * width))
        self.action_out = zero(robot_linear(robots, width, action_dim))

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """`action` (B, H, A); raises SpecError where the heads cannot share the width, robots are not told apart, or
        tokens are to modulate the layers.
        """
        for key, spec in features_of(inputs).items():
            if config.conditioning == "adaln" and spec.kind is not Kind.POOLED:
                raise SpecError(
                    f"`{key}` is {spec}; only pooled features modulate the layers",
                    field="conditioning",
                    source=key,
                    label=f"`{key}` is {spec.kind}",
                    help=f"pool it by a neck, `{{type: attention_pool, reads: [{key}]}}`, or use "
                    "`conditioning: cross_attention`",
                )
        if config.per_embodiment:
            required_embodiments(inputs, "per_embodiment")
        parts = config.heads * (2 if config.positions == "rope" else 1)
        if config.width % parts or config.width % 2:
            raise SpecError(
                f"a width of {config.width} cannot be shared by {config.heads} heads",
                field="width",
                label=f"not an even multiple of {parts}",
                help=f"choose an even `width` that is a multiple of {parts}",
            )
        return {"action": action_spec(inputs)}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="dit", width=32, depth=2, heads=2)

    def encode(self, features: Mapping[str, Feature]) -> Context:
        """All features as one sequence, `tokens` (B, M, D), with its `mask` (B, M) unless every token is valid.

        Where they stand beside the time, all side by side, `condition` (B, C). Where robots have weights of their own,
        also `embodiment` (B,).
        """
        dtype = self.action_in.weight.dtype
        context: Context = {}
        if self.config.per_embodiment:
            context[EMBODIMENT] = features[EMBODIMENT].values
        if self.config.conditioning == "adaln":
            beside = [features[key].values.to(dtype) for key in self._keys]
            return {"condition": torch.cat(beside, dim=-1), **context}
        parts = []
        for key, name in self._keys.items():
            values = features[key].values
            tokens = self.project[name]((values if values.ndim == 3 else values[:, None]).to(dtype))
            tokens = tokens + self.positions[name] if name in self.positions else tokens
            parts.append((tokens, features[key].mask))
        mask = joined_mask(*parts)
        tokens = torch.cat([tokens for tokens, _ in parts], dim=1)
        return {"tokens": tokens, **({} if mask is None else {"mask": mask}), **context}

    def forward(self, chunk: Tensor, time: Tensor, context: Context, is_pad: Tensor | None = None) -> Tensor:
        """Chunk (B, H, A) and time (B,) -> (B, H, A), float32."""
        dtype, seen, mask = self.action_in.weight.dtype, context.get("tokens"), context.get("mask")
        robots = [context[EMBODIMENT]] if self.config.per_embodiment else []
        tokens = self.action_in(chunk.to(dtype), *robots)
        if self.config.positions == "learned":
            tokens = tokens + self.action_positions
        told = sinusoids(time, self.config.time_width or self.config.width, self._time_scale).to(dtype)
        condition = self.time(told)
        if "condition" in context:
            condition = torch.cat([condition, context["condition"]], dim=-1)
        condition = nn.functional.silu(condition)
        valid = None
        if is_pad is not None:  # the first step is always shown, so that there is something to attend to
            valid = torch.cat([torch.ones_like(is_pad[:, :1]), ~is_pad[:, 1:]], dim=1)
        if self.config.conditioning == "in_context" and seen is not None:
            valid = joined_mask((seen, mask), (tokens, valid))
            tokens = torch.cat([seen, tokens], dim=1)
        by = None
        if self.config.positions == "rope":
            places = torch.arange(tokens.shape[1], device=tokens.device)[None]
            by = rotary_table(places, self.config.width // self.config.heads)
        for block in self.blocks:
            tokens = block(tokens, valid, condition, seen, mask, by)
        tokens = tokens[:, -self._horizon :]
        if self.modulation is not None:
            shift, scale = self.modulation(condition).chunk(2, dim=-1)
            _, tokens = modulated(self.norm, tokens, shift=shift, scale=scale)
        out: Tensor = self.action_out(tokens, *robots)
        return out.float()


class Block(nn.Module):
    """A transformer layer with AdaLN-zero: self-attention, cross-attention where asked for, and feed-forward."""

    def __init__(self, config: Any, condition: int) -> None:
        super().__init__()
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        branches = {"attention": Attention(width, config.heads)}
        if config.conditioning == "cross_attention":
            branches["cross"] = Attention(width, config.heads)
        self.branches = nn.ModuleDict(
            {**branches, "mlp": mlp([width, hidden, width], "gelu", config.dropout)}
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zero(nn.Linear(condition, 3 * len(self.branches) * width))

    def forward(
        self,
        tokens: Tensor,
        valid: Tensor | None,
        condition: Tensor,
        context: Tensor | None,
        mask: Tensor | None,
        by: RotaryTable | None,
    ) -> Tensor:
        """tokens (B, N, D), valid (B, N), condition (B, C), context (B, M, D), mask (B, M) -> (B, N, D)."""
        modulations = iter(self.modulation(condition).chunk(3 * len(self.branches), dim=-1))
        change = gate = None
        for name, branch in self.branches.items():
            shift, scale, gate_after = next(modulations), next(modulations), next(modulations)
            tokens, normal = modulated(self.norm, tokens, change, gate, shift, scale)
            gate = gate_after
            if name == "attention":
                change = branch(normal, normal, valid, by)
            else:
                change = branch(normal, context, mask) if name == "cross" else branch(normal)
        assert gate is not None
        out: Tensor = tokens + gate[:, None] * change
        return out
