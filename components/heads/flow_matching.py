from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.part import Count, HeadConfig, NetworkConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Context, Facts, Feature
from ..denoising.heads import (
    DenoisingHead,
    build_network,
    default_network,
    network_specs,
    zero_missing_dims,
)
from ..denoising.noise_levels import BetaLevels, NoiseLevels
from ..features import chunk_size, masked_mean, padded_steps
from ..part_options import nested
from ..randomness.generator import normal
from ..real_time import Continuation, Delay, Prefix, guided_slope
from ..registry import NETWORKS
from ..shares import WHOLE, Shares

LevelT = TypeVar("LevelT", float, Tensor)


class FlowMatching(DenoisingHead):
    """Flow matching (Lipman et al., 2023): a network learns the velocity that carries noise to actions.

    With the noise level s, which is 1 for noise and 0 for the action:

        x_s = s eps + (1 - s) a        dx/ds = eps - a

    Time may run either way. With `noise_at: 0` the network sees t = 1 - s and predicts dx/dt = a - eps, as in
    GR00T; with `noise_at: 1`, t = s and dx/dt = eps - a, as in pi0. Levels, noise and integration are
    float32.
    """

    accepts = ()
    averages_values = True

    class Config(HeadConfig):
        type: Literal["flow_matching"]
        network: Annotated[NetworkConfig, *nested(NETWORKS)] = Field(default_factory=default_network)
        """Network that predicts the velocity."""
        noise_at: Literal[0, 1] = 0
        """Time of pure noise, as the network sees it; 0 in GR00T, 1 in pi0."""
        predicts: Literal["velocity", "action"] = "velocity"
        """Target of the network: dx/dt, or the action itself, as in X-VLA."""
        levels: NoiseLevels = Field(default_factory=lambda: BetaLevels(type="beta"))
        """Distribution of the noise levels in training."""
        repeats: Count = 1
        """Number of noises and levels drawn per sample in training; the backbones run once for all."""
        padded_dims: Literal["zero", "noise"] = "zero"
        """Input of the network in dimensions that a robot lacks; noise in pi0, SmolVLA and GR00T as published."""
        sampler: Literal["euler", "heun"] = "euler"
        """Integration of the velocity; `heun` evaluates it twice per step and is more accurate."""
        steps: Count = 10
        """Number of steps in sampling."""
        delay: Delay | None = None
        """Training for real-time chunking: give the steps that run while the robot thinks; null to predict whole chunks."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._horizon, self._action_dim = chunk_size(inputs)
        self.network = build_network(config.network, inputs, "unit")

    @classmethod
    def kinds(cls, config: Config) -> tuple[Kind, ...]:
        """Return the kinds that the network accepts."""
        return NETWORKS.get(config.network.type).accepts

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `action` (B, H, A).

        Raises:
            SpecError: The network does not fit, or `delay` leaves no step to predict or asks more of the network
                than it can.
        """
        if config.delay is not None:
            _check_delay(config.delay, config.network, inputs)
        return network_specs(config.network, inputs, "unit")

    @classmethod
    def example(cls) -> Config:
        network = NETWORKS.get("dit").example()
        return cls.Config(type="flow_matching", network=network, steps=4)

    def loss(
        self,
        features: Mapping[str, Feature],
        actions: Tensor,
        is_pad: Tensor,
        shares: Shares = WHOLE,
    ) -> dict[str, Tensor]:
        """Return the mean squared error of the prediction over the values that are not padding, nor given."""
        context = self.network.encode(features)
        actions = actions.float().masked_fill(is_pad, 0.0)
        if (repeats := self.config.repeats) > 1:
            context = {key: value.repeat_interleave(repeats, 0) for key, value in context.items()}
            actions, is_pad = actions.repeat_interleave(repeats, 0), is_pad.repeat_interleave(repeats, 0)
        level, noise = self.draw(actions)
        hidden = padded_steps(is_pad)
        if self.config.delay is not None:
            given = self.draw_prefix(actions)
            level = level[:, None].masked_fill(given, 0.0)  # (B, H)
            is_pad = is_pad | given[..., None]
        at = level.view(len(level), -1, 1)
        noisy = self._network_input(at * noise + (1.0 - at) * actions, features, repeats)
        predicted = self.network(noisy, self._time(level), context, hidden)
        forward = noise - actions if self.config.noise_at == 1 else actions - noise
        target = forward if self.config.predicts == "velocity" else actions
        return {"loss": masked_mean((predicted - target) ** 2, is_pad, shares.get("values"))}

    @property
    def continuation(self) -> Continuation:
        """Guidance, or a given prefix of at most `delay.max` steps."""
        return Continuation(self.config.delay and self.config.delay.max)

    @torch.no_grad()
    def sample(self, features: Mapping[str, Feature], generator: torch.Generator | None = None) -> Tensor:
        """Integrate noise, drawn by the generator, to an action chunk (B, H, A)."""
        return self._integrate(features, generator, None)

    @torch.no_grad()
    def inpaint(
        self, features: Mapping[str, Feature], prefix: Prefix, generator: torch.Generator | None = None
    ) -> Tensor:
        """Integrate noise to an action chunk (B, H, A) that continues a running one.

        With `delay`, it begins with the steps of weight 1, at most `delay.max` of them. Without, every step is
        guided towards the prefix.
        """
        return self._integrate(features, generator, prefix)

    def _integrate(
        self, features: Mapping[str, Feature], generator: torch.Generator | None, prefix: Prefix | None
    ) -> Tensor:
        context = self.network.encode(features)
        first = next(iter(context.values()))
        chunk = normal((first.shape[0], self._horizon, self._action_dim), first.device, generator)
        given, actions = None, chunk
        if prefix is not None and self.config.delay is not None:
            given = (prefix.weights >= 1.0) & (
                torch.arange(self._horizon, device=chunk.device) < self.config.delay.max
            )
            actions = zero_missing_dims(prefix.actions, features)

        def with_given(chunk: Tensor) -> Tensor:
            return chunk if given is None else torch.where(given[..., None], actions, chunk)

        def slope_at(chunk: Tensor, level: float) -> Tensor:
            if prefix is None or given is not None:
                return self._slope(with_given(chunk), level, context, features, given)
            return guided_slope(lambda x: self._slope(x, level, context, features), chunk, level, prefix)

        steps = self.config.steps
        for step in range(1 if chunk.is_meta else steps):  # all steps are the same there
            level, size = 1.0 - step / steps, -1.0 / steps
            slope = slope_at(chunk, level)
            if self.config.sampler == "heun" and step < steps - 1:
                ahead = slope_at(chunk + size * slope, level + size)
                slope = (slope + ahead) / 2.0
            chunk = chunk + size * slope
        return with_given(chunk)

    def draw(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return random noise levels (B,) and noise of the shape of the actions (B, H, A), in float32."""
        levels = self.config.levels.draw(len(actions), actions.device)
        return levels, torch.randn_like(actions, dtype=torch.float32)

    def draw_prefix(self, actions: Tensor) -> Tensor:
        """Return the steps (B, H) of actions (B, H, A) that are given: the first 0 to `delay.max` of each chunk."""
        count, device = len(actions), actions.device
        delays = torch.randint(self.config.delay.max + 1, (count, 1), device=device)
        return torch.arange(self._horizon, device=device) < delays

    def _time(self, level: LevelT) -> LevelT:
        """Return the time of a noise level, as the network sees it."""
        return level if self.config.noise_at == 1 else 1.0 - level

    def _network_input(self, chunk: Tensor, features: Mapping[str, Feature], repeats: int = 1) -> Tensor:
        """Return the chunk (B * repeats, H, A) as the network sees it."""
        return chunk if self.config.padded_dims == "noise" else zero_missing_dims(chunk, features, repeats)

    def _slope(
        self,
        chunk: Tensor,
        level: float,
        context: Context,
        features: Mapping[str, Feature],
        given: Tensor | None = None,
    ) -> Tensor:
        """Return dx/ds (B, H, A) for a chunk (B, H, A) and a noise level above 0, which is 0 at `given` (B, H)."""
        chunk_in = self._network_input(chunk, features)
        if given is None:
            predicted = self.ask(chunk_in, self._time(level), context)
        else:
            times = torch.full(chunk.shape[:2], self._time(level), device=chunk.device)
            predicted = self.network(chunk_in, times.masked_fill(given, self._time(0.0)), context)
        if self.config.predicts == "action":
            return (chunk - predicted) / level
        return predicted if self.config.noise_at == 1 else -predicted


def _check_delay(delay: Delay, network: NetworkConfig, inputs: Specs) -> None:
    horizon, _ = chunk_size(inputs)
    if delay.max >= horizon:
        raise SpecError(
            f"of a chunk of {horizon} actions, up to {delay.max} are given",
            field="delay.max",
            label="leaves none to predict",
            help=f"lower `delay.max` to {horizon - 1} or less, or raise `data.horizon`",
        )
    if not NETWORKS.get(network.type).times_of_steps:
        able = [name for name in NETWORKS.names() if NETWORKS.get(name).times_of_steps]
        raise SpecError(
            f"`{network.type}` takes one time for a whole chunk, so it cannot tell given steps from noise",
            field="delay",
            label=f"not with `{network.type}`",
            help=f"leave `delay` out, or choose a `network` of {', '.join(f'`{name}`' for name in able)}",
        )
