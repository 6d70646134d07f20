"""LeRobot's SmolVLA as ours, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

_MODEL = "model.vlm_with_expert.vlm.model."
_EXPERT = "model.vlm_with_expert.lm_expert."
_HEAD = "model.vlm_with_expert.vlm.lm_head.weight"
"""Language head, which the policy does not use."""
_EMBEDDING = f"{_MODEL}text_model.embed_tokens.weight"
_FIXED = {
    "min_period": 4e-3,
    "max_period": 4.0,
    "add_image_special_tokens": False,
    "prefix_length": -1,
    "adapt_to_pi_aloha": False,
    "use_delta_joint_actions_aloha": False,
}
_DEFAULT = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
_ROPE = 10_000.0
"""Base of the rotary embedding, whatever the language model was trained with."""


def to_policysmith(
    state: Mapping[str, Tensor], config: Mapping[str, Any], architecture: str | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The recipe of a LeRobot SmolVLA, without its data, and its weights under our names.

    The vision-language model is that of the config, unless `architecture` names another place to read it from. State
    and actions are padded to `max_state_dim` and `max_action_dim`, as LeRobot does; the dataset must be, too. The prompt
    ends with a newline. Raises WeightsError for weights that are missing or unknown, and for options that we do not have.
    """
    refuse(config, {"type": "smolvla", **_FIXED}, "LeRobot's SmolVLA")
    source = architecture or config.get("vlm_model_name", _DEFAULT)
    layers = config.get("num_vlm_layers", 16)
    depth = {"depth": layers} if layers > 0 else {}
    model = language_model(source, **depth)
    experts = config.get("num_expert_layers", -1)
    refuse(
        {"num_expert_layers": experts if experts > 0 else model.depth},
        {"num_expert_layers": model.depth},
        "SmolVLA",
    )
    every = config.get("self_attn_every_n_layers", 2)
    if "cross" not in config.get("attention_mode", "cross_attn"):
        every = 1
    if every < 1:
        raise WeightsError("SmolVLA without joint layers cannot be converted")
    ours = renamed(state, _names(model), "LeRobot's SmolVLA", unused=(_HEAD,))
    recipe = {
        "recipe": 1,
        "name": "smolvla",
        "data": {"horizon": config.get("chunk_size", 50)},
        "policy": {
            "backbones": {
                "vlm": {
                    "type": "vlm",
                    "architecture": source,
                    **depth,
                    "state": "token",
                    "embedding_scale": "sqrt_width",
                    "rope": _ROPE,
                }
            },
            "head": {
                "type": "flow_matching",
                "reads": ["vlm.key_values"],
                "network": {
                    "type": "expert",
                    **expert_of(ours, model),
                    "family": "llama",
                    "action_attention": "causal",
                    "joint_every": every,
                },
                "noise_at": 1,
                "padded_dims": "noise",
                "steps": config.get("num_steps", 10),
            },
        },
    }
    return recipe, ours


def to_lerobot(
    state: Mapping[str, Tensor], recipe: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config of LeRobot's SmolVLA for the recipe of one, and the weights under LeRobot's names.

    The language head, which the policy does not use, is the embedding. Raises WeightsError where the recipe is not that
    of a SmolVLA, or the expert has another size than LeRobot would give it.
    """
    head, vlm = option(recipe, "policy", "head"), option(recipe, "policy", "backbones", "vlm")
    network = option(head, "network")
    wanted = {
        "network": "expert",
        "noise_at": 1,
        "family": "llama",
        "action_attention": "causal",
        "time": "concat_mlp",
    }
    refuse({**head, **network, "network": network.get("type")}, wanted, "a policy for LeRobot's SmolVLA")
    refuse(
        vlm,
        {"state": "token", "embedding_scale": "sqrt_width", "rope": _ROPE},
        "a policy for LeRobot's SmolVLA",
    )
    source = vlm.get("pretrained") or vlm.get("architecture")
    model = language_model(source, vlm.get("depth"))
    width = network["width"]
    sizes = {"hidden": _hidden(width), "heads": model.text_sizes.num_attention_heads}
    refuse(network, sizes, "a policy for LeRobot's SmolVLA")
    theirs = renamed(state, inverted(_names(model)), "our SmolVLA")
    theirs[_HEAD] = theirs[_EMBEDDING]
    horizon, every = option(recipe, "data", "horizon"), network.get("joint_every", 1)
    config = {
        "type": "smolvla",
        "vlm_model_name": source,
        "num_vlm_layers": model.depth,
        "expert_width_multiplier": width / model.width,
        "attention_mode": "cross_attn" if every > 1 else "self_attn",
        "self_attn_every_n_layers": every,
        "chunk_size": horizon,
        "n_action_steps": horizon,
        "max_state_dim": theirs["model.state_proj.weight"].shape[1],
        "max_action_dim": len(theirs["model.action_out_proj.bias"]),
        "num_steps": head.get("steps", 10),
    }
    return config, theirs


def _hidden(width: int) -> int:
    """Hidden size of the feed-forward layers that LeRobot gives an expert: 8 / 3 of its width, rounded up to 256s."""
    return -(-(4 * (2 * width // 3)) // 256) * 256


def _names(model: Family) -> dict[str, str]:
    """LeRobot's names to ours."""
    linear = {
        "action_in_proj": "action_in",
        "action_out_proj": "action_out",
        "action_time_mlp_in": "time.0",
        "action_time_mlp_out": "time.2",
    }
    return {
        **model_names(model, _MODEL, {}),
        **expert_names(_EXPERT, model.depth, adaptive=False),
        **linear_names({f"model.{old}": NETWORK + new for old, new in linear.items()}),
        **linear_names({"model.state_proj": "backbones.vlm.state"}),
    }
