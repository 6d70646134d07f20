"""What heads that denoise share: their network, judged and built, and chunks without the dimensions a robot lacks."""

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
    """A small diffusion transformer."""
    config: NetworkConfig = NETWORKS.get("dit").Config(type="dit")
    return config


def time_scale(facts: Facts) -> float:
    """Factor that tells a network of either kind of head the time in steps, some hundreds of them."""
    return 1000.0 if facts["time"] == "unit" else 1.0


def build(config: NetworkConfig, inputs: Specs, time: Time) -> Network:
    """The network of a head."""
    return NETWORKS.get(config.type)(config, inputs, {"time": time})


def check(config: NetworkConfig, inputs: Specs, time: Time) -> dict[str, Spec]:
    """What the network gives; raises its SpecError, located below the head's option `network`."""
    try:
        return NETWORKS.get(config.type).specs(config, inputs, {"time": time})
    except SpecError as error:
        if error.field != "reads" and not (error.field or "").startswith("reads."):
            error.field = "network" if error.field is None else f"network.{error.field}"
        raise


def zero_padded(chunk: Tensor, features: Mapping[str, Feature], repeats: int = 1) -> Tensor:
    """The chunk (B * repeats, H, A) with zeros in the dimensions that its robots do not have."""
    if ACTION_PADDING not in features:
        return chunk
    is_pad = features[ACTION_PADDING].values.repeat_interleave(repeats, 0)
    return chunk.masked_fill(is_pad[:, None], 0.0)
