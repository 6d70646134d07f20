"""Networks of denoising heads, and chunks with zeros in the dimensions that a robot lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.part import NetworkConfig
from ...schemas.specs import Spec, Specs
from ..base import Facts, Feature, Network
from ..embodiments import ACTION_PADDING
from ..registry import NETWORKS

Time = Literal["unit", "steps"]


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
