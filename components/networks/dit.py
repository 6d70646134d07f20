from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

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
from ..kernels.modulated_norm import per_token
from ..layers.basic import Attention, joined_mask, mlp, sinusoids, zero
from ..layers.blocks.modulation import modulated, with_features
from ..layers.per_robot import robot_linear
from ..layers.rotary import RotaryTable, rotary_table


class Dit(Network):
    """Diffusion transformer over the chunk, with layers modulated by time (DiT, Peebles & Xie, 2023).

    Layers that start at zero shift and scale the norms and gate the branches (AdaLN-zero), so the network
    starts as the zero function. Features are projected to the network's width, and receive learned positions,
    one per token, if their number is fixed. With `conditioning: adaln` it is LeRobot's multi-task DiT
    instead: unprojected pooled features modulate every layer together with the time, without a norm before
    the last layer.
    """

    accepts = (Kind.TOKENS, Kind.POOLED)
    times_of_steps = True

    class Config(NetworkConfig):
        type: Literal["dit"]
        width: Count = 256
        """Size of a token of the transformer."""
        depth: Depth = 4
        """Number of layers."""
        heads: Count = 4
        """Number of attention heads, which share `width`."""
        mlp_ratio: Annotated[float, Field(gt=0.0)] = 4.0
        """Hidden size of the feed-forward layers, in token sizes."""
        dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
        """Dropout rate in the feed-forward layers."""
        per_embodiment: bool = False
        """Use separate layers to read and write the actions of each robot; for data of several robots."""
        time_width: Annotated[int, Field(ge=2, multiple_of=2)] | None = None
        """Size of the embedded time, an even number; by default `width`."""
        conditioning: Literal["cross_attention", "in_context", "adaln"] = "cross_attention"
        """Conditioning on features: by cross-attention in every layer, as tokens of the same sequence, or by modulation together with the time."""
        positions: Literal["learned", "rope"] = "learned"
        """Positions of the steps: learned, or rotary queries and keys."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._horizon, action_dim = chunk_size(inputs)
        self._time_scale = time_scale(facts)
        features = features_of(inputs)
        self._keys = {key: key.replace(".", "_") for key in features}  # no dots in module names
        width, condition = config.width, config.time_width or config.width
        self.time = mlp([condition, condition, condition], "silu")
        modulates = config.conditioning == "adaln"
        condition += sum(spec.width for spec in features.values()) if modulates else 0
        self.project = nn.ModuleDict()
        self.positions = nn.ParameterDict()
        for key, spec in features.items() if not modulates else ():
            name = self._keys[key]
            self.project[name] = nn.Sequential(nn.LayerNorm(spec.width), nn.Linear(spec.width, width))
            count = spec.dims[1] if spec.kind is Kind.TOKENS else 1
            if isinstance(count, int):
                self.positions[name] = nn.Parameter(torch.randn(1, count, width) * 0.02)
        robots = required_embodiments(inputs, "per_embodiment") if config.per_embodiment else None
        self.action_in = robot_linear(robots, action_dim, width)
        if config.positions == "learned":
            self.action_positions = nn.Parameter(torch.randn(1, self._horizon, width) * 0.02)
        self.blocks = nn.ModuleList(DitBlock(config, condition) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = None if modulates else zero(nn.Linear(condition, 2 * width))
        self.action_out = zero(robot_linear(robots, width, action_dim))

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `action` (B, H, A).

        Raises:
            SpecError: The heads cannot share the width, `per_embodiment` is set for one robot, or
                `conditioning: adaln` reads tokens.
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
        """Return the features as a sequence, `tokens` (B, M, D), and `mask` (B, M) unless all are valid.

        With `conditioning: adaln`, return them side by side as `condition` (B, C) instead. With
        `per_embodiment`, add `embodiment` (B,).
        """
        dtype = self.action_in.weight.dtype
        context: Context = {}
        if self.config.per_embodiment:
            context[EMBODIMENT] = features[EMBODIMENT].values
        if self.config.conditioning == "adaln":
            modulates = [features[key].values.to(dtype) for key in self._keys]
            return {"condition": torch.cat(modulates, dim=-1), **context}
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
        """Return the prediction (B, H, A), float32, for chunk (B, H, A) and time (B,) or (B, H)."""
        dtype, seen, mask = self.action_in.weight.dtype, context.get("tokens"), context.get("mask")
        robots = [context[EMBODIMENT]] if self.config.per_embodiment else []
        tokens = self.action_in(chunk.to(dtype), *robots)
        if self.config.positions == "learned":
            tokens = tokens + self.action_positions
        made, condition = context.get("modulations"), None
        if made is None:
            condition = context["moment"] if "moment" in context else self._embed(time)
            if "condition" in context:
                pooled = context["condition"]
                pooled = pooled if condition.ndim == 2 else pooled[:, None].expand(-1, self._horizon, -1)
                condition = torch.cat([condition, pooled], dim=-1)
            condition = nn.functional.silu(condition)
        valid = None
        if is_pad is not None:  # the first step stays visible, so that attention is never empty
            valid = torch.cat([torch.ones_like(is_pad[:, :1]), ~is_pad[:, 1:]], dim=1)
        if self.config.conditioning == "in_context" and seen is not None:
            valid = joined_mask((seen, mask), (tokens, valid))
            tokens = torch.cat([seen, tokens], dim=1)
        rotary = None
        if self.config.positions == "rope":
            places = torch.arange(tokens.shape[1], device=tokens.device)[None]
            rotary = rotary_table(places, self.config.width // self.config.heads)
        known = tokens.shape[1] - self._horizon
        everywhere = None if condition is None else with_features(condition, known)
        modulations = [None] * len(self.blocks) if made is None else made.unbind(1)
        for block, modulation in zip(self.blocks, modulations, strict=True):
            tokens = block(tokens, valid, everywhere, seen, mask, rotary, modulation)
        tokens = tokens[:, -self._horizon :]
        if self.modulation is not None:
            last = context.get("last_modulation")
            last = self.modulation(condition) if last is None else last
            shift, scale = last.chunk(2, dim=-1)
            _, tokens = modulated(self.norm, tokens, shift=shift, scale=scale)
        out: Tensor = self.action_out(tokens, *robots)
        return out.float()

    def at(self, time: Tensor) -> Context:
        """Return the `modulations` (B, L, K * D) of blocks and the `last_modulation` (B, 2 * D).

        With `conditioning: adaln`, they depend on features too; return the embedded `moment` (B, C) then.
        """
        moment = self._embed(time)
        if self.modulation is None:
            return {"moment": moment}
        condition = nn.functional.silu(moment)
        made = [cast(Any, block).modulation(condition) for block in self.blocks]
        return {"modulations": torch.stack(made, dim=1), "last_modulation": self.modulation(condition)}

    def _embed(self, time: Tensor) -> Tensor:
        """Embed times (B,) to (B, C)."""
        width, dtype = self.config.time_width or self.config.width, self.action_in.weight.dtype
        embedded: Tensor = self.time(sinusoids(time, width, self._time_scale).to(dtype))
        return embedded


class DitBlock(nn.Module):
    """Transformer layer with AdaLN-zero: self-attention, optional cross-attention, and feed-forward."""

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
        condition: Tensor | None,
        context: Tensor | None,
        mask: Tensor | None,
        rotary: RotaryTable | None,
        modulation: Tensor | None = None,
    ) -> Tensor:
        """Map tokens (B, N, D), with the embedded time condition (B, C) or (B, N, C), to (B, N, D).

        valid (B, N) is True for tokens that others may attend to. context (B, M, D), with mask (B, M), is for
        cross-attention, rotary holds the cosines and sines of the tokens' positions, and modulation
        (B, K * D) is that of the condition, if it is known.
        """
        modulation = self.modulation(condition) if modulation is None else modulation
        modulations = iter(modulation.chunk(3 * len(self.branches), dim=-1))
        change = gate = None
        for name, branch in self.branches.items():
            shift, scale, gate_after = next(modulations), next(modulations), next(modulations)
            tokens, normal = modulated(self.norm, tokens, change, gate, shift, scale)
            gate = gate_after
            if name == "attention":
                change = branch(normal, normal, valid, rotary)
            else:
                change = branch(normal, context, mask) if name == "cross" else branch(normal)
        assert gate is not None
        assert change is not None
        out: Tensor = tokens + per_token(gate) * change
        return out
