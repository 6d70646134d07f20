"""Conversion of LeRobot's SmolVLA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from .....components.vlms.base import VlmFamily
from .....schemas.errors import WeightsError
from ..expert_inputs import NEWLINE, Inputs, Processor
from ..experts import (
    action_pairs,
    expert_pairs,
    is_expert,
    model_of,
    model_pairs,
    reads_of,
    refuse_others,
    sections_of,
    sizes_of,
)
from ..weight_names import WeightPair, layer, to_ours, to_theirs

_MODEL = "model.vlm_with_expert.vlm"
_HEAD = f"{_MODEL}.lm_head.weight"
"""Language head, which the policy does not use."""
_EMBEDDING = f"{_MODEL}.model.text_model.embed_tokens.weight"
_FIXED = {
    "min_period": 4e-3,
    "max_period": 4.0,
    "n_obs_steps": 1,
    "add_image_special_tokens": False,
    "prefix_length": -1,
    "adapt_to_pi_aloha": False,
    "use_delta_joint_actions_aloha": False,
}
_NAME = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
_LEVELS = {"type": "beta", "alpha": 1.5, "beta": 1.0, "floor": 0.001}
INPUTS = Inputs(
    "smolvla_new_line_processor",
    "resize_imgs_with_padding",
    "bottom_right",
    padded=("observation.state", "action"),
    flipped=True,
)
STEPS = INPUTS.steps
_READING = {"state": "token", "embedding_scale": "sqrt_width", "rope": 10_000.0}
"""Options of the model, independent of its training."""


def is_of(recipe: Mapping[str, Any]) -> bool:
    """Return whether a resolved recipe belongs to this family."""
    return is_expert(recipe, family="llama")


def transforms(config: Mapping[str, Any], normalize: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the transforms of a recipe, given the normalizing ones, or raise WeightsError."""
    return INPUTS.transforms(config, normalize, 512)


def processor(content: Mapping[str, Any]) -> Processor:
    """Return config options, preprocessor steps and remaining content, or raise WeightsError."""
    return INPUTS.processor(content, NEWLINE)


def to_policysmith(
    weights: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the sections of a recipe and its weights, or raise WeightsError.

    The policy expects states and actions padded with zeros and images in [-1, 1], as provided by
    `transforms`.
    """
    refuse_others(config, _FIXED, "LeRobot's SmolVLA")
    name, layers = config.get("vlm_model_name", _NAME), config.get("num_vlm_layers", 16)
    depth = {"depth": layers} if layers > 0 else {}
    model = model_of(name, **depth)
    if config.get("num_expert_layers", -1) not in (*range(-1, 1), model.depth):
        raise WeightsError(
            f"an expert of {config['num_expert_layers']} layers beside {model.depth} cannot be converted"
        )
    every = (
        config.get("self_attn_every_n_layers", 2)
        if "cross" in config.get("attention_mode", "cross_attn")
        else 1
    )
    if every < 1:
        raise WeightsError("an expert without joint layers cannot be converted")
    ours = to_ours({key: value for key, value in weights.items() if key != _HEAD}, _pairs(model), "SmolVLA")
    frozen = ["backbones.vlm.model.vision_model.*"] * bool(config.get("freeze_vision_encoder", True))
    if config.get("train_expert_only", True):
        frozen = ["backbones.vlm.model.*"]
    if not config.get("train_state_proj", True):
        frozen.append("backbones.vlm.state.*")
    policy = {
        "backbones": {
            "vlm": {"type": "vlm", "architecture": name, **reads_of(config, state=True), **depth, **_READING}
        },
        "head": {
            "type": "flow_matching",
            "reads": ["vlm.key_values"],
            "network": {
                "type": "expert",
                **sizes_of(ours, model),
                "family": "llama",
                "action_attention": "causal",
                "joint_every": every,
            },
            "noise_at": 1,
            "levels": _LEVELS,
            "padded_dims": "noise",
            "steps": config.get("num_steps", 10),
        },
        "freeze": frozen,
        "execute": config["n_action_steps"],
    }
    collator = {
        "type": "language",
        "tokenizer": name,
        "max_length": config.get("tokenizer_max_length", 48),
        "padding": config.get("pad_language_to", "longest"),
        "truncate": "end",
        "prompt": NEWLINE,
    }
    return {**sections_of(config), "policy": policy, "collator": collator}, ours


def to_lerobot(
    weights: Mapping[str, Tensor], content: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return LeRobot's config, without features and normalization, and the weights, or raise WeightsError.

    The language head, which the policy does not use, is set to the embedding.
    """
    policy, data = content["recipe"]["policy"], content["recipe"]["data"]
    head, network = policy["head"], policy["head"]["network"]
    if list(policy["backbones"]) != ["vlm"] or policy["necks"]:
        raise WeightsError("LeRobot's SmolVLA has one backbone, a `vlm` of that name, and no necks")
    raw = policy["backbones"]["vlm"]
    plain = {"attention": None, "soft_prompts": 0, "queries": 0, "decoder": False, "lora": None}
    refuse_others(raw, {**plain, **_READING}, "a `vlm` backbone")
    refuse_others(
        head,
        {
            "noise_at": 1,
            "padded_dims": "noise",
            "sampler": "euler",
            "predicts": "velocity",
            "levels": _LEVELS,
        },
        "a policy",
    )
    name = raw["pretrained"] or raw["architecture"]
    model = model_of(name, raw["depth"])
    width, every = network["width"], network["joint_every"]
    sizes = {"hidden": _hidden(width), "heads": model.text_sizes.num_attention_heads, "depth": None}
    refuse_others(network, {**sizes, "action_attention": "causal", "time": "concat_mlp"}, "an expert")
    theirs = to_theirs(weights, _pairs(model), "SmolVLA")
    theirs[_HEAD] = theirs[_EMBEDDING].clone()
    config = {
        "type": "smolvla",
        "vlm_model_name": name,
        "num_vlm_layers": model.depth,
        "expert_width_multiplier": width / model.width,
        "attention_mode": "cross_attn" if every > 1 else "self_attn",
        "self_attn_every_n_layers": every,
        "chunk_size": data["horizon"],
        "n_action_steps": policy["execute"] or data["horizon"],
        "max_state_dim": theirs["model.state_proj.weight"].shape[1],
        "max_action_dim": len(theirs["model.action_out_proj.bias"]),
        "num_steps": head["steps"],
    }
    return config, theirs


def _hidden(width: int) -> int:
    """Return the feed-forward size of the expert: 8 / 3 of its width, up to a multiple of 256."""
    return -(-(4 * (2 * width // 3)) // 256) * 256


def _pairs(model: VlmFamily) -> Iterator[WeightPair]:
    """Yield the weights of a policy."""
    yield from model_pairs(model, f"{_MODEL}.model", {})
    yield from expert_pairs("model.vlm_with_expert.lm_expert", model.depth, adaptive=False)
    yield from action_pairs(adaptive=False)
    yield from layer("model.state_proj", "backbones.vlm.state")


__all__ = ["STEPS", "is_of", "processor", "to_lerobot", "to_policysmith", "transforms"]
