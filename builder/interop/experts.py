"""What LeRobot's pi0 and SmolVLA share: an expert and a vision-language model, by their names there and here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...components.pretrained import read_config
from ...components.vlms.families import FAMILIES, family_of
from ...components.vlms.family import Family
from ...schemas.errors import WeightsError

NETWORK = "head.network."
_LAYER = {
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.o_proj": "out",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
}
_NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}


def expert_names(prefix: str, depth: int, adaptive: bool) -> dict[str, str]:
    """Theirs to ours, of the expert's layers and its last norm."""
    norm = {".dense.weight": ".modulation.weight", ".dense.bias": ".modulation.bias"}
    norm = norm if adaptive else {".weight": ".weight"}
    names = {f"norm{old}": f"norm{new}" for old, new in norm.items()}
    for layer in (f"layers.{index}." for index in range(depth)):
        names |= {f"{layer}{old}.weight": f"{layer}{new}.weight" for old, new in _LAYER.items()}
        for theirs, ours in _NORMS.items():
            names |= {f"{layer}{theirs}{old}": f"{layer}{ours}{new}" for old, new in norm.items()}
    return {prefix + theirs: NETWORK + ours for theirs, ours in names.items()}


def linear_names(pairs: Mapping[str, str]) -> dict[str, str]:
    """Theirs to ours, of linear layers with biases."""
    return {f"{old}.{kind}": f"{new}.{kind}" for old, new in pairs.items() for kind in ("weight", "bias")}


def language_model(architecture: str, depth: int | None = None) -> Family:
    """The vision-language model of that name, or in that directory."""
    return family_of(read_config(architecture, tuple(FAMILIES), "choose a vision-language model"), depth)


def model_names(family: Family, prefix: str, renamings: Mapping[str, str]) -> dict[str, str]:
    """Theirs to ours, of the vision-language model; `renamings` are beginnings of names, ours to theirs."""
    with torch.device("meta"):
        ours = list(family.build().state_dict())
    names = {}
    for key in ours:
        old = next((old for old in renamings if key.startswith(old)), "")
        names[prefix + renamings.get(old, "") + key.removeprefix(old)] = f"backbones.vlm.model.{key}"
    return names


def expert_of(state: Mapping[str, Tensor], model: Family) -> dict[str, int]:
    """Sizes of the expert whose weights these are, under our names."""
    return {
        "width": state[f"{NETWORK}action_in.weight"].shape[0],
        "hidden": state[f"{NETWORK}layers.0.mlp.gate.weight"].shape[0],
        "heads": state[f"{NETWORK}layers.0.query.weight"].shape[0] // model.head_size,
    }


def option(config: Mapping[str, Any], *path: str) -> Any:
    """What a config says at a path of keys; raises WeightsError where it says nothing."""
    found: Any = config
    for key in path:
        if not isinstance(found, Mapping) or key not in found:
            raise WeightsError(f"the config lacks `{'.'.join(path)}`")
        found = found[key]
    return found


def refuse(config: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Raise WeightsError where an option of a config is not as expected, which the other side does not have."""
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise WeightsError(
                f"{what} with `{key}: {config[key]}` cannot be converted: only `{key}: {value}` can"
            )
