"""Denoising heads, their networks, and chunks with zeros in the dimensions that a robot lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.part import NetworkConfig
from ...schemas.specs import Spec, Specs
from ..base import ActionHead, Context, Facts, Feature, Network
from ..embodiments import ACTION_PADDING
from ..registry import NETWORKS

Time = Literal["unit", "steps"]


class DenoisingHead(ActionHead):
    """Head whose sampler asks a network about noisy chunks, at the same few times for every chunk."""

    network: Network
    _moments: dict[float, tuple[Tensor, Context]] | None = None

    def pack(self) -> None:
        """Keep what the network makes of each time of the sampler, for inference."""
        self._moments = {}

    def ask(self, chunk: Tensor, time: float, context: Context) -> Tensor:
        """Return the network's prediction (B, H, A) for a chunk (B, H, A) at one time."""
        count = chunk.shape[0]
        if self._moments is None:
            times = torch.full((count,), time, device=chunk.device)
        else:
            if time not in self._moments:
                with torch.no_grad():
                    one = torch.full((1,), time, device=chunk.device)
                    self._moments[time] = one, self.network.at(one)
            one, moment = self._moments[time]
            times = one.expand(count)
            context = {**context, **{k: v.expand(count, *v.shape[1:]) for k, v in moment.items()}}
        predicted: Tensor = self.network(chunk, times, context)
        return predicted


def default_network() -> NetworkConfig:
    """Return the config of a small diffusion transformer."""
    config: NetworkConfig = NETWORKS.get("dit").Config(type="dit")
    return config


def time_scale(facts: Facts) -> float:
    """Return the factor that turns the times of either kind of head into steps, some hundreds of them."""
    return 1000.0 if facts["time"] == "unit" else 1.0


def build_network(config: NetworkConfig, inputs: Specs, time: Time) -> Network:
    """Build the network of a head."""
    return NETWORKS.get(config.type)(config, inputs, {"time": time})


def network_specs(config: NetworkConfig, inputs: Specs, time: Time) -> dict[str, Spec]:
    """Return the specs of the network; raise its SpecError, located below the head's option `network`."""
    try:
        return NETWORKS.get(config.type).specs(config, inputs, {"time": time})
    except SpecError as error:
        if error.field != "reads" and not (error.field or "").startswith("reads."):
            error.field = "network" if error.field is None else f"network.{error.field}"
        raise


def zero_missing_dims(chunk: Tensor, features: Mapping[str, Feature], repeats: int = 1) -> Tensor:
    """Return the chunk (B * repeats, H, A) with zeros in the dimensions that its robots lack."""
    if ACTION_PADDING not in features:
        return chunk
    is_pad = features[ACTION_PADDING].values.repeat_interleave(repeats, 0)
    return chunk.masked_fill(is_pad[:, None], 0.0)
