from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
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
from ..denoising.noise_schedules import Cosine, NoiseSchedule, signal_shares
from ..features import chunk_size, largest_action, masked_mean, padded_steps, require_bound
from ..part_options import nested
from ..randomness.generator import normal
from ..real_time import Continuation, Prefix, guidance_weight, pull_to
from ..registry import NETWORKS
from ..shares import WHOLE, Shares

Share = TypeVar("Share", float, Tensor)


class Diffusion(DenoisingHead):
    """Denoising diffusion (DDPM, Ho et al., 2020), as in Diffusion Policy (Chi et al., 2023).

    With a_t, the share of the action left at step t:

        x_t = sqrt(a_t) action + sqrt(1 - a_t) eps        v = sqrt(a_t) eps - sqrt(1 - a_t) action

    Sampling visits `steps` of the trained steps, evenly spaced and ending at 0. Each predicts the action,
    clips it, and continues with the preceding step: `ddpm` draws from the posterior of x, `ddim` takes x on
    the line through action and noise (Song et al., 2021). Steps, noise and sampling are float32.
    """

    accepts = ()
    averages_values = True

    class Config(HeadConfig):
        type: Literal["diffusion"]
        network: Annotated[NetworkConfig, *nested(NETWORKS)] = Field(default_factory=default_network)
        """Network that predicts the noise."""
        predicts: Literal["epsilon", "sample", "v"] = "epsilon"
        """Target of the network: the noise, the action, or v (Salimans & Ho, 2022)."""
        schedule: NoiseSchedule = Field(default_factory=lambda: Cosine(type="squaredcos_cap_v2"))
        """Noise that each step adds."""
        train_steps: Annotated[int, Field(ge=1, le=100_000)] = 100
        """Number of steps from an action to noise."""
        repeats: Count = 1
        """Number of noises and steps drawn per sample in training; the backbones run once for all."""
        sampler: Literal["ddpm", "ddim"] = "ddpm"
        """Reversal of a step: with new noise, or without, which needs fewer steps."""
        steps: Count | None = None
        """Number of steps in sampling, by default all; a divisor of `train_steps`, or else the first step is not full noise."""
        clip_sample: Annotated[float, Field(gt=0.0)] | Literal["data"] | None = "data"
        """Bound of the actions that each step predicts, no smaller than those of the training data; by default equal to them, 1 after `normalize` with `mode: min_max`. Null for none."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._horizon, self._action_dim = chunk_size(inputs)
        self.bound = _bound(config, inputs)
        """Bound of the actions that each step predicts; None for no bound."""
        self.network = build_network(config.network, inputs, "steps")

    @classmethod
    def kinds(cls, config: Config) -> tuple[Kind, ...]:
        """Return the kinds that the network accepts."""
        return NETWORKS.get(config.network.type).accepts

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `action` (B, H, A).

        Raises:
            SpecError: The network does not fit, `steps` exceeds `train_steps`, or the bound clips training
                actions.
        """
        if config.steps is not None and config.steps > config.train_steps:
            raise SpecError(
                f"{config.steps} steps are sampled, but only {config.train_steps} are trained",
                field="steps",
                label=f"more than {config.train_steps}",
                help="lower `steps`, or leave it out to use all trained steps",
            )
        _bound(config, inputs)
        return network_specs(config.network, inputs, "steps")

    @classmethod
    def example(cls) -> Config:
        network = NETWORKS.get("dit").example()
        return cls.Config(
            type="diffusion",
            network=network,
            predicts="sample",
            train_steps=10,
            sampler="ddim",
            steps=3,
            clip_sample=None,
        )

    def loss(
        self,
        features: Mapping[str, Feature],
        actions: Tensor,
        is_pad: Tensor,
        shares: Shares = WHOLE,
    ) -> dict[str, Tensor]:
        """Return the mean squared error of the prediction over the values that are not padding."""
        config, context = self.config, self.network.encode(features)
        actions = actions.float().masked_fill(is_pad, 0.0)
        if (repeats := config.repeats) > 1:
            context = {key: value.repeat_interleave(repeats, 0) for key, value in context.items()}
            actions, is_pad = actions.repeat_interleave(repeats, 0), is_pad.repeat_interleave(repeats, 0)
        step, noise = self.draw(actions)
        left = signal_shares(config.schedule, config.train_steps, actions.device).float()[step][:, None, None]
        noisy = zero_missing_dims(_mix(actions, noise, left), features, repeats)
        predicted = self.network(noisy, step.float(), context, padded_steps(is_pad))
        target = {"epsilon": noise, "sample": actions, "v": _mix(noise, -actions, left)}[config.predicts]
        return {"loss": masked_mean((predicted - target) ** 2, is_pad, shares.get("values"))}

    @torch.no_grad()
    def sample(self, features: Mapping[str, Feature], generator: torch.Generator | None = None) -> Tensor:
        """Denoise a chunk (B, H, A), with noise from the generator."""
        return self._denoise(features, generator, None)

    @property
    def continuation(self) -> Continuation:
        """Guidance."""
        return Continuation()

    @torch.no_grad()
    def inpaint(
        self, features: Mapping[str, Feature], prefix: Prefix, generator: torch.Generator | None = None
    ) -> Tensor:
        """Denoise a chunk (B, H, A), guided towards the prefix in every step."""
        return self._denoise(features, generator, prefix)

    def _denoise(
        self, features: Mapping[str, Feature], generator: torch.Generator | None, prefix: Prefix | None
    ) -> Tensor:
        context = self.network.encode(features)
        first = next(iter(context.values()))
        shape, device = (first.shape[0], self._horizon, self._action_dim), first.device
        chunk = normal(shape, device, generator)
        most = 1 if chunk.is_meta else None  # all steps are the same there
        for step, left, left_before in self._steps[:most]:
            if prefix is None:
                action, noise = self._split(chunk, step, left, context, features)
            else:
                action, noise = self._guided_split(chunk, step, left, context, features, prefix)
            if self.config.sampler == "ddim":
                chunk = _mix(action, noise, left_before)
                continue
            ratio = left / left_before
            chunk = (
                left_before**0.5 * (1.0 - ratio) / (1.0 - left) * action
                + ratio**0.5 * (1.0 - left_before) / (1.0 - left) * chunk
            )
            if step > 0:
                spread = ((1.0 - left_before) / (1.0 - left) * (1.0 - ratio)) ** 0.5
                chunk = chunk + spread * normal(shape, device, generator)
        return chunk

    def draw(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return random steps (B,), int64, and noise of the shape of the actions (B, H, A), in float32."""
        steps = torch.randint(self.config.train_steps, (len(actions),), device=actions.device)
        return steps, torch.randn_like(actions, dtype=torch.float32)

    @cached_property
    def _steps(self) -> list[tuple[int, float, float]]:
        """Steps of sampling, last first, with the share of the action at each and at the next."""
        config = self.config
        left: list[float] = signal_shares(config.schedule, config.train_steps).tolist()
        stride = config.train_steps // (config.steps or config.train_steps)
        visited = [visit * stride for visit in reversed(range(config.steps or config.train_steps))]
        return [(step, left[step], left[step - stride] if step else 1.0) for step in visited]

    def _guided_split(
        self,
        chunk: Tensor,
        step: int,
        left: float,
        context: Context,
        features: Mapping[str, Feature],
        prefix: Prefix,
    ) -> tuple[Tensor, Tensor]:
        """Return the action and the noise of `_split`, guided towards a prefix.

        With x = c action + n eps, the weight w of the guidance and its pull g:

            action + n w g        eps - c w g

        This is the guided flow of the chunk x / (c + n), whose noise level is n / (c + n).
        """

        def predict(start: Tensor) -> tuple[Tensor, Tensor]:
            action, noise = self._split(start, step, left, context, features)
            return action, torch.stack([action, noise])

        found, pull = pull_to(predict, chunk, prefix)
        signal, spread = left**0.5, (1.0 - left) ** 0.5
        change = guidance_weight(signal, spread, prefix.strength) * pull
        action, noise = found.unbind()
        return self._clipped(action + spread * change), noise - signal * change

    def _split(
        self, chunk: Tensor, step: int, left: float, context: Context, features: Mapping[str, Feature]
    ) -> tuple[Tensor, Tensor]:
        """Return the clipped action and the noise (B, H, A) that the network finds in a chunk (B, H, A)."""
        found = self.ask(zero_missing_dims(chunk, features), float(step), context)
        if self.config.predicts == "epsilon":
            action, noise = (chunk - (1.0 - left) ** 0.5 * found) / left**0.5, found
        elif self.config.predicts == "sample":
            action, noise = found, (chunk - left**0.5 * found) / (1.0 - left) ** 0.5
        else:
            action, noise = _mix(chunk, -found, left), _mix(found, chunk, left)
        return self._clipped(action), noise

    def _clipped(self, action: Tensor) -> Tensor:
        return action if self.bound is None else action.clamp(-self.bound, self.bound)


def _bound(config: Diffusion.Config, inputs: Specs) -> float | None:
    """Return the bound of predicted actions, or None; raise SpecError if it clips training actions."""
    if config.clip_sample == "data":
        return largest_action(inputs)
    if config.clip_sample is not None:
        require_bound(inputs, config.clip_sample, "clip_sample", "leave `clip_sample` out, or")
    return config.clip_sample


def _mix(first: Tensor, second: Tensor, share: Share) -> Tensor:
    """Return sqrt(share) first + sqrt(1 - share) second."""
    mixed: Tensor = share**0.5 * first + (1.0 - share) ** 0.5 * second
    return mixed
