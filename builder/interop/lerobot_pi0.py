"""LeRobot's pi0 and pi0.5 as ours, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...components.vlms.family import Family
from ...schemas.errors import WeightsError
from .experts import (
    NETWORK,
    expert_names,
    expert_of,
    language_model,
    linear_names,
    model_names,
    option,
    refuse,
)
from .renaming import inverted, renamed

ARCHITECTURE = "google/paligemma-3b-pt-224"
"""The vision-language model of both."""
VARIANTS = {2048: "gemma_2b", 1024: "gemma_300m"}
"""LeRobot's names for the widths that its language models can have."""
_MODEL = "model.paligemma_with_expert.paligemma.model."
_EXPERT = "model.paligemma_with_expert.gemma_expert.model."
_EMBEDDING = f"{_MODEL}language_model.embed_tokens.weight"
_HEADS = (
    "model.paligemma_with_expert.paligemma.lm_head.weight",
    "model.paligemma_with_expert.gemma_expert.lm_head.weight",
)
"""Language heads, which neither policy uses."""
_FIXED = {"min_period": 4e-3, "max_period": 4.0, "use_relative_actions": False}


def to_policysmith(
    state: Mapping[str, Tensor], config: Mapping[str, Any], architecture: str = ARCHITECTURE
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The recipe of a LeRobot policy, without its data, and its weights under our names.

    State and actions are padded to `max_state_dim` and `max_action_dim`, as LeRobot does; the dataset must be, too. The
    prompt ends with a newline. Raises WeightsError for weights that are missing or unknown, and for options that we
    do not have.
    """
    kind = option(config, "type")
    what = f"LeRobot's {kind}"
    refuse(config, _FIXED, what)
    floor, scale = config.get("time_sampling_offset", 0.001), config.get("time_sampling_scale", 0.999)
    if abs(floor + scale - 1.0) > 1e-9:
        raise WeightsError(
            f"{what} with noise levels up to {floor + scale} cannot be converted: only up to 1 can"
        )
    weights = {key if key.startswith("model.") else f"model.{key}": value for key, value in state.items()}
    if _EMBEDDING not in weights and _HEADS[0] in weights:  # files hold one of two tied weights
        weights[_EMBEDDING] = weights[_HEADS[0]]
    model, adaptive = language_model(architecture), kind == "pi05"
    ours = renamed(weights, _names(model, adaptive), what, unused=_HEADS)
    proprio = {} if adaptive else {"proprio": {"type": "state"}}
    recipe = {
        "recipe": 1,
        "name": kind,
        "data": {"horizon": config.get("chunk_size", 50)},
        "policy": {
            "backbones": {"vlm": {"type": "vlm", "architecture": architecture}, **proprio},
            "head": {
                "type": "flow_matching",
                "reads": ["vlm.key_values", *(f"{name}.tokens" for name in proprio)],
                "network": {
                    "type": "expert",
                    **expert_of(ours, model),
                    "time": "adarms" if adaptive else "concat_mlp",
                },
                "noise_at": 1,
                "levels": {
                    "type": "beta",
                    "alpha": config.get("time_sampling_beta_alpha", 1.5),
                    "beta": config.get("time_sampling_beta_beta", 1.0),
                    "floor": floor,
                },
                "padded_dims": "noise",
                "steps": config.get("num_inference_steps", 10),
            },
        },
    }
    return recipe, ours


def to_lerobot(
    state: Mapping[str, Tensor], recipe: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config of LeRobot's pi0 or pi0.5 for the recipe of one, and the weights under LeRobot's names.

    Language heads, which the policies do not use, are the embedding and zeros. Raises WeightsError where the recipe
    is not one of these policies, or LeRobot has no expert of its size.
    """
    head = option(recipe, "policy", "head")
    network, vlm = option(head, "network"), option(recipe, "policy", "backbones", "vlm")
    refuse(
        {**head, **network, "network": network.get("type")},
        {
            "network": "expert",
            "noise_at": 1,
            "family": "gemma",
            "action_attention": "bidirectional",
            "joint_every": 1,
        },
        "a policy for LeRobot's pi0",
    )
    adaptive = network.get("time") == "adarms"
    model = language_model(vlm.get("pretrained") or vlm.get("architecture"), vlm.get("depth"))
    kind = "pi05" if adaptive else "pi0"
    theirs = renamed(state, inverted(_names(model, adaptive)), f"our {kind}")
    width, levels = network["width"], head.get("levels") or {}
    for size in (width, model.width):
        if size not in VARIANTS:
            raise WeightsError(
                f"LeRobot has no language model of width {size}, only {', '.join(map(str, VARIANTS))}"
            )
    theirs[_HEADS[0]] = theirs[_EMBEDDING]
    theirs[_HEADS[1]] = torch.zeros(model.vocabulary, width, dtype=theirs[_EMBEDDING].dtype)
    horizon, floor = option(recipe, "data", "horizon"), levels.get("floor", 0.001)
    config = {
        "type": kind,
        "paligemma_variant": VARIANTS[model.width],
        "action_expert_variant": VARIANTS[width],
        "chunk_size": horizon,
        "n_action_steps": horizon,
        "max_action_dim": len(theirs["model.action_out_proj.bias"]),
        "num_inference_steps": head.get("steps", 10),
        "time_sampling_beta_alpha": levels.get("alpha", 1.5),
        "time_sampling_beta_beta": levels.get("beta", 1.0),
        "time_sampling_offset": floor,
        "time_sampling_scale": 1.0 - floor,
    }
    if not adaptive:
        config["max_state_dim"] = theirs["model.state_proj.weight"].shape[1]
    return config, theirs


def _names(model: Family, adaptive: bool) -> dict[str, str]:
    """LeRobot's names to ours."""
    linear = {
        "action_in_proj": "action_in",
        "action_out_proj": "action_out",
        ("time_mlp_in" if adaptive else "action_time_mlp_in"): "time.0",
        ("time_mlp_out" if adaptive else "action_time_mlp_out"): "time.2",
        **({} if adaptive else {"state_proj": "project.proprio_tokens"}),
    }
    vision = {"vision_tower.": "vision_tower.vision_model."}
    return {
        **model_names(model, _MODEL, vision),
        **expert_names(_EXPERT, model.depth, adaptive),
        **linear_names({f"model.{old}": NETWORK + new for old, new in linear.items()}),
    }
