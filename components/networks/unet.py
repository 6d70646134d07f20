from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...schemas.errors import SpecError
from ...schemas.part import MOST_LAYERS, Count, NetworkConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Context, Facts, Feature, Network
from ..denoising.heads import time_scale
from ..features import action_spec, chunk_size, features_of
from ..kernels.dispatch import uses_kernel
from ..kernels.group_norm_mish import group_norm_mish
from ..layers.basic import mlp, sinusoids
from ..layers.short_convolutions import convolve

_LAST_GROUPS = 8
"""Groups of the last norm, independent of `groups`, as in Diffusion Policy."""


class Unet(Network):
    """One-dimensional U-Net over the steps of the chunk (Diffusion Policy, Chi et al., 2023).

    Each level has two residual blocks and halves the number of steps. On the way back each level doubles it
    again, and also reads the output of the same level on the way down.
    (The level of all steps has no such input, as in the original.) Time and features, side by side, modulate
    every block:

        y = conv(scale(c) * conv(x) + bias(c)) + x
        conv = mish(norm(convolution))        [scale, bias] = W mish(c)

    Hidden steps become zeros, like those beyond the ends.
    """

    accepts = (Kind.POOLED,)

    class Config(NetworkConfig):
        type: Literal["unet"]
        widths: list[Count] = Field(
            max_length=MOST_LAYERS, default_factory=lambda: [256, 512, 1024], min_length=1
        )
        """Channels of the levels, from all steps of the chunk to the fewest; 512, 1024 and 2048 in LeRobot."""
        kernel: Count = 5
        """Width of the convolutions in steps; odd."""
        groups: Count = 8
        """Number of groups of the norms, which share the channels."""
        time_width: Annotated[int, Field(ge=4, multiple_of=2)] = 128
        """Size of the embedded time; even."""
        film_scale: bool = True
        """Let time and features scale the channels, not only shift them."""

    float32 = ("time", "down", "middle", "up", "last", "action_out")
    """All of it: over many steps, roundings of bfloat16 add up to more than 2 % of an action's deviation."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        _, action_dim = chunk_size(inputs)
        self._time_scale = time_scale(facts)
        self._keys = tuple(features_of(inputs))
        condition = config.time_width + sum(spec.width for spec in features_of(inputs).values())
        self.time = mlp([config.time_width, 4 * config.time_width, config.time_width], "mish")

        def level(before: int, after: int, change: nn.Module) -> UnetLevel:
            first, second = (ResidualBlock(width, after, condition, config) for width in (before, after))
            return UnetLevel(first, second, change)

        widths = config.widths
        self.down = nn.ModuleList()
        for index, (before, after) in enumerate(itertools.pairwise([action_dim, *widths])):
            halve = nn.Conv1d(after, after, 3, stride=2, padding=1)
            self.down.append(level(before, after, halve if index < len(widths) - 1 else nn.Identity()))
        self.middle = level(widths[-1], widths[-1], nn.Identity())
        self.up = nn.ModuleList(
            level(2 * before, after, nn.ConvTranspose1d(after, after, 4, stride=2, padding=1))
            for before, after in itertools.pairwise(reversed(widths))
        )
        self.last = ConvBlock(widths[0], widths[0], config.kernel, _LAST_GROUPS)
        self.action_out = nn.Conv1d(widths[0], action_dim, 1)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `action` (B, H, A); raise SpecError if horizon, kernel or groups do not fit."""
        features_of(inputs)
        horizon, _ = chunk_size(inputs)
        factor = 2 ** (len(config.widths) - 1)
        if horizon % factor:
            raise SpecError(
                f"a chunk of {horizon} steps cannot be halved {len(config.widths) - 1} times",
                field="widths",
                source="action",
                label=f"{len(config.widths)} levels need a multiple of {factor} steps",
                help=f"set `data.horizon` to {-(-horizon // factor) * factor}, or name fewer `widths`",
            )
        if config.kernel % 2 == 0:
            raise SpecError(
                f"a kernel of {config.kernel} has no middle",
                field="kernel",
                label="even",
                help="choose an odd one",
            )
        for index, width in enumerate(config.widths):
            for groups in (config.groups, *((_LAST_GROUPS,) if index == 0 else ())):
                if width % groups:
                    raise SpecError(
                        f"{groups} groups cannot share {width} channels",
                        field=f"widths.{index}",
                        label=f"not a multiple of {groups}",
                        help=f"choose a multiple of {groups}, such as {-(-width // groups) * groups}",
                    )
        return {"action": action_spec(inputs)}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="unet", widths=[64, 32], kernel=3, time_width=32)

    def encode(self, features: Mapping[str, Feature]) -> Context:
        """Return all features side by side, `condition` (B, C)."""
        values = [features[key].values for key in self._keys]
        return {"condition": torch.cat(values, dim=-1).to(self.action_out.weight.dtype)}

    def forward(self, chunk: Tensor, time: Tensor, context: Context, is_pad: Tensor | None = None) -> Tensor:
        """Return the prediction (B, H, A), float32, for chunk (B, H, A) and time (B,)."""
        dtype = self.action_out.weight.dtype
        if is_pad is not None:
            chunk = chunk.masked_fill(is_pad[..., None], 0.0)
        embedded = context["moment"] if "moment" in context else self._embed(time)
        condition = F.mish(torch.cat([embedded, context["condition"]], dim=-1))  # (B, C)
        hidden = chunk.to(dtype).transpose(1, 2)  # (B, A, H)
        skipped = []
        for level in self.down:
            kept, hidden = level(hidden, condition)  # (B, D_i, H / 2^i), (B, D_i, H / 2^(i+1))
            skipped.append(kept)
        _, hidden = self.middle(hidden, condition)
        for level in self.up:
            _, hidden = level(torch.cat([hidden, skipped.pop()], dim=1), condition)
        out = convolve(self.action_out, self.last(hidden))
        return out.transpose(1, 2).float()

    def at(self, time: Tensor) -> Context:
        """Return the embedded `moment` (B, C)."""
        return {"moment": self._embed(time)}

    def _embed(self, time: Tensor) -> Tensor:
        angles = sinusoids(time, self.config.time_width, self._time_scale, ends="both")
        embedded: Tensor = self.time(angles.to(self.action_out.weight.dtype))
        return embedded


class UnetLevel(nn.Module):
    """Two residual blocks, and a module that changes the number of steps after them."""

    def __init__(self, first: ResidualBlock, second: ResidualBlock, change: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.change = first, second, change

    def forward(self, steps: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Map steps (B, D, H), with condition (B, C), to (B, D', H), and return the same with H changed."""
        hidden = self.second(self.first(steps, condition), condition)
        if isinstance(self.change, nn.Conv1d | nn.ConvTranspose1d):
            return hidden, convolve(self.change, hidden)
        return hidden, hidden


class ConvBlock(nn.Sequential):
    """scale * mish(norm(convolution)) + shift, over the steps."""

    def __init__(self, before: int, after: int, kernel: int, groups: int) -> None:
        convolution = nn.Conv1d(before, after, kernel, padding=kernel // 2)
        super().__init__(convolution, nn.GroupNorm(groups, after), nn.Mish())

    def forward(self, steps: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Map steps (B, D, H), with scale and shift (B, D'), to (B, D', H)."""
        convolution, norm, mish = self
        assert isinstance(convolution, nn.Conv1d)
        assert isinstance(norm, nn.GroupNorm)
        hidden = convolve(convolution, steps)
        if uses_kernel(hidden):
            return group_norm_mish(hidden, norm.num_groups, norm.weight, norm.bias, scale, shift, norm.eps)
        hidden = cast(Tensor, mish(norm(hidden)))
        hidden = hidden if scale is None else scale[..., None] * hidden
        return hidden if shift is None else hidden + shift[..., None]


class ResidualBlock(nn.Module):
    """Two convolutions with FiLM between them (Perez et al., 2018), beside a shortcut."""

    def __init__(self, before: int, after: int, condition: int, config: Unet.Config) -> None:
        super().__init__()
        self.first = ConvBlock(before, after, config.kernel, config.groups)
        self.film = nn.Linear(condition, (2 if config.film_scale else 1) * after)
        self.second = ConvBlock(after, after, config.kernel, config.groups)
        self.shortcut = nn.Conv1d(before, after, 1) if before != after else nn.Identity()

    def forward(self, steps: Tensor, condition: Tensor) -> Tensor:
        """Map steps (B, D, H), with condition (B, C), to (B, D', H)."""
        *scale, shift = self.film(condition).split(self.first[0].out_channels, dim=1)
        hidden = self.first(steps, scale[0] if scale else None, shift)
        beside = convolve(self.shortcut, steps) if isinstance(self.shortcut, nn.Conv1d) else steps
        out: Tensor = self.second(hidden) + beside
        return out
