from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...schemas.errors import SpecError
from ...schemas.part import Count, Depth, NetworkConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Context, Facts, Feature, Network
from ..denoising.heads import time_scale
from ..features import action_spec, chunk_size, features_of, select
from ..kernels.modulated_norm import per_token
from ..layers.basic import Attention, CategoryLinear, joined_mask, mlp, sinusoids, zero
from ..layers.blocks.modulation import modulated, with_features
from ..layers.per_robot import RobotMlp, apply_robot_linear, robot_linear

_TIMES = 256


class GrootDit(Network):
    """Diffusion transformer of GR00T's action head (Bjorck et al., 2025).

    The sequence is [state, queries, actions]. Even layers attend to features, such as the tokens of a
    vision-language model, odd layers to the sequence itself. The time, in 1000 steps, scales and shifts the
    norm before each attention, and enters together with an action x:

        W3 silu(W2 [W1 x, sinusoids(time)]) + position

    With several robots, the encoder of states, the encoder of actions and the decoder have separate weights
    for each. Unlike in the original, masked tokens are hidden from attention.
    """

    accepts = (Kind.TOKENS, Kind.POOLED)
    times_of_steps = True

    class Config(NetworkConfig):
        type: Literal["groot_dit"]
        width: Count = 1536
        """Size of a token of the transformer."""
        depth: Depth = 16
        """Number of layers."""
        heads: Count = 32
        """Number of attention heads, which share `width`."""
        hidden: Count = 1024
        """Output size of the transformer, and hidden size of state encoder and action decoder."""
        sequence: list[str] | None = Field(default=None, min_length=1)
        """Features in the sequence, such as the state; by default the pooled ones. Layers attend to the others."""
        attend: Literal["together", "in_turn"] = "together"
        """Attend to all other features in each layer, or to one per layer in turn, as in GR00T N1.7."""
        queries: Annotated[int, Field(ge=0)] = 0
        """Number of learned tokens in the sequence; 32 in GR00T N1 and N1.5."""
        dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
        """Dropout rate after attention and in the feed-forward layers."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._horizon, action_dim = chunk_size(inputs)
        self._time_scale = time_scale(facts)
        robots = inputs["embodiment"].vocab if "embodiment" in inputs else None
        sequence, attended = _split_roles(config, inputs)
        self._sequence = {key: key.replace(".", "_") for key in sequence}  # no dots in module names
        self._groups = [[key] for key in attended] if config.attend == "in_turn" else [list(attended)]
        width, hidden = config.width, config.hidden
        self.states = nn.ModuleDict(
            {
                self._sequence[key]: RobotMlp(robots, [spec.width, hidden, width])
                for key, spec in sequence.items()
            }
        )
        self.action_in = robot_linear(robots, action_dim, width)
        self.action_mlp = RobotMlp(robots, [2 * width, width, width], silu=True)
        self.action_positions = nn.Parameter(torch.randn(1, self._horizon, width) * 0.2)
        if config.queries:
            self.queries = nn.Parameter(torch.randn(1, config.queries, width) * 0.02)
        self.time = mlp([_TIMES, width, width], "silu")
        widths = [attended[group[0]].width for group in self._groups]
        self.blocks = nn.ModuleList(
            GrootBlock(config, width if index % 2 else widths[index // 2 % len(widths)])
            for index in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, hidden)
        self.action_out = RobotMlp(robots, [hidden, hidden, action_dim])

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `action` (B, H, A); raise SpecError if heads, depth or features do not fit."""
        if config.width % config.heads or config.width % 2:
            raise SpecError(
                f"a width of {config.width} cannot be shared by {config.heads} heads",
                field="width",
                label=f"not an even multiple of {config.heads}",
                help="choose an even `width` that is a multiple of `heads`",
            )
        _, attended = _split_roles(config, inputs)
        count = len(attended)
        if config.attend == "in_turn" and config.depth < 2 * count - 1:
            raise SpecError(
                f"{config.depth} layers do not attend to {count} features in turn",
                field="depth",
                label=f"fewer than {2 * count - 1}",
                help=f"every second layer attends to one: choose a `depth` of {2 * count - 1} or more",
            )
        return {"action": action_spec(inputs)}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(
            type="groot_dit", width=64, depth=3, heads=2, hidden=64, attend="in_turn", queries=2, dropout=0.0
        )

    def encode(self, features: Mapping[str, Feature]) -> Context:
        """Return all that depends on the features.

        Returns:
            `tokens` (B, M, D) of the sequence, the attended features `seen0`, `seen1`, ... (B, N, C), the
                masks `tokens_mask` and `mask0`, `mask1`, ... unless all are valid, and `robot` (B,) with
                several robots; without gradients also `key_value0`, `key_value2`, ..., the keys and values
                (B, N, 2 * D) of the layers that attend to them.
        """
        dtype = self.out.weight.dtype

        def tokens_of(key: str) -> Tensor:
            values = features[key].values.to(dtype)
            return values if values.ndim == 3 else values[:, None]

        context: Context = {}
        if isinstance(self.action_in, CategoryLinear):
            context["robot"] = features["embodiment"].values
        for index, group in enumerate(self._groups):
            parts = [(tokens_of(key), features[key].mask) for key in group]
            context[f"seen{index}"] = torch.cat([tokens for tokens, _ in parts], dim=1)
            if (mask := joined_mask(*parts)) is not None:
                context[f"mask{index}"] = mask
        if not torch.is_grad_enabled():
            for index, block in enumerate(self.blocks):
                if index % 2 == 0:
                    seen = context[f"seen{index // 2 % len(self._groups)}"]
                    context[f"key_value{index}"] = cast(Any, block).attention.key_value(seen)
        robot = context.get("robot")
        parts = [
            (self.states[name](tokens_of(key), robot), features[key].mask)
            for key, name in self._sequence.items()
        ]
        if self.config.queries:
            parts.append((self.queries.expand(context["seen0"].shape[0], -1, -1), None))
        if parts:
            context["tokens"] = torch.cat([tokens for tokens, _ in parts], dim=1)
            if (mask := joined_mask(*parts)) is not None:
                context["tokens_mask"] = mask
        return context

    def forward(self, chunk: Tensor, time: Tensor, context: Context, is_pad: Tensor | None = None) -> Tensor:
        """Return the prediction (B, H, A), float32, for chunk (B, H, A) and time (B,) or (B, H)."""
        robot, made = context.get("robot"), context.get("modulations")
        tokens = apply_robot_linear(self.action_in, chunk.to(self.out.weight.dtype), robot)
        embedded = per_token(context["moment"] if "moment" in context else self._embed(time))
        tokens = self.action_mlp(torch.cat([tokens, embedded.expand_as(tokens)], dim=-1), robot)
        tokens = tokens + self.action_positions
        valid = None
        if is_pad is not None:  # the first step stays visible, so that attention is never empty
            valid = torch.cat([torch.ones_like(is_pad[:, :1]), ~is_pad[:, 1:]], dim=1)
        if "tokens" in context:
            valid = joined_mask((context["tokens"], context.get("tokens_mask")), (tokens, valid))
            tokens = torch.cat([context["tokens"], tokens], dim=1)
        condition = self._condition(time) if made is None else None
        everywhere = None if condition is None else with_features(condition, tokens.shape[1] - self._horizon)
        modulations = [None] * (len(self.blocks) + 1) if made is None else made.unbind(1)
        for index, block in enumerate(self.blocks):
            turn = index // 2 % len(self._groups)
            seen, mask = (
                (context[f"seen{turn}"], context.get(f"mask{turn}")) if index % 2 == 0 else (None, valid)
            )
            known = context.get(f"key_value{index}")
            tokens = block(tokens, everywhere, seen, mask, known, modulations[index])
        last = self.modulation(condition) if modulations[-1] is None else modulations[-1]
        shift, scale = last.chunk(2, dim=-1)
        _, tokens = modulated(self.norm, tokens[:, -self._horizon :], shift=shift, scale=scale)
        tokens = self.out(tokens)
        return self.action_out(tokens, robot).float()  # type: ignore[no-any-return]

    def at(self, time: Tensor) -> Context:
        """Return the embedded `moment` (B, D), and the `modulations` (B, L + 1, 2 * D) of blocks and last norm."""
        condition = self._condition(time)
        layers = [*(cast(Any, block).modulation for block in self.blocks), self.modulation]
        modulations = torch.stack([layer(condition) for layer in layers], dim=1)
        return {"moment": self._embed(time), "modulations": modulations}

    def _embed(self, time: Tensor) -> Tensor:
        """Embed times (B,) to (B, D), as they enter together with actions."""
        return sinusoids(self._steps(time), self.config.width, scale=1.0).to(self.out.weight.dtype)

    def _condition(self, time: Tensor) -> Tensor:
        """Embed times (B,) to (B, D), as they modulate norms."""
        return F.silu(self.time(_embed_steps(self._steps(time)).to(self.out.weight.dtype)))

    def _steps(self, time: Tensor) -> Tensor:
        return (time * self._time_scale).long()


class GrootBlock(nn.Module):
    """Attention after a norm that time scales and shifts, and feed-forward."""

    def __init__(self, config: Any, context_width: int) -> None:
        super().__init__()
        width = config.width
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.attention = Attention(width, config.heads, context_width)
        self.dropout = nn.Dropout(config.dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            self.dropout,
            nn.Linear(4 * width, width),
        )

    def forward(
        self,
        tokens: Tensor,
        condition: Tensor | None,
        context: Tensor | None,
        mask: Tensor | None,
        key_value: Tensor | None = None,
        modulation: Tensor | None = None,
    ) -> Tensor:
        """Map tokens (B, N, D), with the embedded time condition (B, D) or (B, N, D), to (B, N, D).

        They attend to context (B, M, C), with mask (B, M), or to each other without a context; key_value
        (B, M, 2 * D) are keys and values of the context, and modulation (B, 2 * D) is that of the condition,
        if they are known.
        """
        modulation = self.modulation(condition) if modulation is None else modulation
        scale, shift = modulation.chunk(2, dim=-1)
        _, normal = modulated(self.norm, tokens, shift=shift, scale=scale)
        change = self.attention(normal, normal if context is None else context, mask, both=key_value)
        tokens, normal = modulated(self.norm, tokens, self.dropout(change))
        out: Tensor = tokens + self.dropout(self.mlp(normal))
        return out


def _embed_steps(step: Tensor) -> Tensor:
    """Embed steps (...,) as cosines and sines (..., 256), float32, of frequencies from 1 down to 1 / 10000."""
    half = _TIMES // 2
    exponents = -math.log(10_000.0) * torch.arange(half, dtype=torch.float32, device=step.device) / (half - 1)
    angles = step[..., None].float() * exponents.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _split_roles(config: Any, inputs: Specs) -> tuple[dict[str, Spec], dict[str, Spec]]:
    """Return the features of the sequence, and those to attend to; raise SpecError if they do not fit."""
    features = features_of(inputs)
    sequence = {key: spec for key, spec in features.items() if spec.kind is Kind.POOLED}
    if config.sequence is not None:
        sequence = select(config.sequence, features, GrootDit.accepts, "sequence")
    attended = {key: spec for key, spec in features.items() if key not in sequence}
    if not attended:
        raise SpecError(
            f"`groot_dit` has nothing to attend to: {' and '.join(sequence)} are in its sequence",
            field=None if config.sequence is None else "sequence",
            label="no feature left",
            help="let the head read tokens too, such as `reads: [vision.tokens, proprio]`, "
            "or name fewer features in `sequence`",
        )
    if config.attend == "together" and len({spec.width for spec in attended.values()}) > 1:
        raise SpecError(
            "features that are attended to together must have one width: "
            + ", ".join(f"{key} has {spec.width}" for key, spec in attended.items()),
            field="attend",
            label="different widths",
            help="set `attend: in_turn`, or bring them to one width by a neck",
        )
    return sequence, attended
