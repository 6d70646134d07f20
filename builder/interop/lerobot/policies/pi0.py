"""Conversion of LeRobot's pi0, with the parts that pi0.5 shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from .....components.vlms.base import VlmFamily
from .....schemas.errors import WeightsError
from ..expert_inputs import NEWLINE, STATE_PROMPT, Inputs, Processor
from ..experts import (
    NETWORK,
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

ARCHITECTURE = "google/paligemma-3b-pt-224"
TOKENIZER = ARCHITECTURE
"""Vision-language model and its tokenizer."""
INPUTS = Inputs("pi0_new_line_processor", "image_resolution", "center", ("observation.state", "action"))
STEPS = INPUTS.steps
VARIANTS = {2048: "gemma_2b", 1024: "gemma_300m"}
"""LeRobot's names of language models, by width."""
_VOCABULARY = 257_152
"""Number of token ids of the tokenizer; the published PaliGemma has more embeddings."""
_MODEL = "model.paligemma_with_expert.paligemma"
_EXPERT = "model.paligemma_with_expert.gemma_expert"
_EMBEDDING = f"{_MODEL}.model.language_model.embed_tokens.weight"
_HEADS = (f"{_MODEL}.lm_head.weight", f"{_EXPERT}.lm_head.weight")
"""Language heads, which the policy does not use."""
_FIXED = {"min_period": 4e-3, "max_period": 4.0, "use_relative_actions": False, "n_obs_steps": 1}
_TIMES = {
    "alpha": "time_sampling_beta_alpha",
    "beta": "time_sampling_beta_beta",
    "floor": "time_sampling_offset",
}


def is_of(recipe: Mapping[str, Any], time: str = "concat_mlp") -> bool:
    """Return whether a resolved recipe belongs to this family."""
    return is_expert(recipe, family="gemma", time=time)


def transforms(config: Mapping[str, Any], normalize: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the transforms of a recipe, given the normalizing ones, or raise WeightsError."""
    return INPUTS.transforms(config, normalize, 224)


def processor(content: Mapping[str, Any]) -> Processor:
    """Return config options, preprocessor steps and remaining content, or raise WeightsError."""
    return INPUTS.processor(content, NEWLINE)


def to_policysmith(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], architecture: str | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the sections of a recipe and its weights, or raise WeightsError.

    The policy expects states and actions padded with zeros and images in [-1, 1], as provided by
    `transforms`.
    """
    kind = config["type"]
    refuse_others(config, _FIXED, f"LeRobot's {kind}")
    levels = {
        ours: config.get(name, default)
        for (ours, name), default in zip(_TIMES.items(), (1.5, 1.0, 1e-3), strict=True)
    }
    top = levels["floor"] + config.get("time_sampling_scale", 0.999)
    if abs(top - 1.0) > 1e-9:
        raise WeightsError(f"noise levels reach {top} here, but 1 in our policies")
    found = {key if key.startswith("model.") else f"model.{key}": value for key, value in weights.items()}
    if _EMBEDDING not in found and _HEADS[0] in found:  # of tied weights, a file has only one
        found[_EMBEDDING] = found[_HEADS[0]]
    for key in _HEADS:
        found.pop(key, None)
    source, adaptive = architecture or ARCHITECTURE, kind == "pi05"
    model = model_of(source)
    ours = to_ours(found, _pairs(model, adaptive), kind)
    vision, everything = ("backbones.vlm.model.vision_tower.*", "backbones.vlm.*")
    frozen = (
        [everything]
        if config.get("train_expert_only")
        else [vision] * bool(config.get("freeze_vision_encoder"))
    )
    proprio = {} if adaptive else {"proprio": {"type": "state", "reads": ["observation.state"]}}
    prompt = {"prompt": STATE_PROMPT, "task_text": "cleaned"} if adaptive else {"prompt": NEWLINE}
    policy = {
        "backbones": {
            "vlm": {"type": "vlm", "architecture": source, **reads_of(config, state=False)},
            **proprio,
        },
        "head": {
            "type": "flow_matching",
            "reads": ["vlm.key_values", *(f"{name}.tokens" for name in proprio)],
            "network": {
                "type": "expert",
                **sizes_of(ours, model),
                "time": "adarms" if adaptive else "concat_mlp",
            },
            "noise_at": 1,
            "levels": {"type": "beta", **levels},
            "padded_dims": "noise",
            "steps": config.get("num_inference_steps", 10),
        },
        "freeze": frozen,
        "execute": config["n_action_steps"],
    }
    collator = {
        "type": "language",
        "tokenizer": TOKENIZER,
        "max_length": config.get("tokenizer_max_length", 200 if adaptive else 48),
        "truncate": "end",
        **prompt,
    }
    return {**sections_of(config), "policy": policy, "collator": collator}, ours


def to_lerobot(
    weights: Mapping[str, Tensor], content: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return LeRobot's config, without features and normalization, and the weights, or raise WeightsError.

    The language heads, which the policy does not use, are set to the embedding and to zeros.
    """
    policy, data = content["recipe"]["policy"], content["recipe"]["data"]
    head = policy["head"]
    network = head["network"]
    adaptive = network["time"] == "adarms"
    kind = "pi05" if adaptive else "pi0"
    model = _model_of(policy, kind, adaptive)
    refuse_others(
        head, {"noise_at": 1, "padded_dims": "noise", "sampler": "euler", "predicts": "velocity"}, "a policy"
    )
    refuse_others(
        network, {"action_attention": "bidirectional", "joint_every": 1, "depth": None}, "an expert"
    )
    if head["levels"]["type"] != "beta":
        raise WeightsError(
            f"LeRobot's {kind} draws noise levels from `beta`, not from `{head['levels']['type']}`"
        )
    for width in (model.width, network["width"]):
        if width not in VARIANTS:
            raise WeightsError(
                f"LeRobot's {kind} has language models of widths {' and '.join(map(str, VARIANTS))}, not {width}"
            )
    theirs = to_theirs(weights, _pairs(model, adaptive), kind)
    theirs[_HEADS[0]] = theirs[_EMBEDDING].clone()
    theirs[_HEADS[1]] = theirs[_EMBEDDING].new_zeros(len(theirs[_EMBEDDING]), network["width"])
    config: dict[str, Any] = {
        "type": kind,
        "paligemma_variant": VARIANTS[model.width],
        "action_expert_variant": VARIANTS[network["width"]],
        "chunk_size": data["horizon"],
        "n_action_steps": policy["execute"] or data["horizon"],
        "max_action_dim": len(theirs["model.action_out_proj.bias"]),
        "num_inference_steps": head["steps"],
        **{name: head["levels"][ours] for ours, name in _TIMES.items()},
        "time_sampling_scale": 1.0 - head["levels"]["floor"],
    }
    if not adaptive:
        config["max_state_dim"] = theirs["model.state_proj.weight"].shape[1]
    return config, theirs


def _model_of(policy: Mapping[str, Any], kind: str, adaptive: bool) -> VlmFamily:
    """Return the vision-language model of a policy, or raise WeightsError if LeRobot does not support it."""
    kinds = {name: raw["type"] for name, raw in policy["backbones"].items()}
    wanted = {"vlm": "vlm"} if adaptive else {"vlm": "vlm", "proprio": "state"}
    if kinds != wanted or policy["necks"]:
        raise WeightsError(
            f"LeRobot's {kind} has backbones {_listing(wanted)} and no necks; this policy has {_listing(kinds)}"
        )
    raw = policy["backbones"]["vlm"]
    plain = {
        "depth": None,
        "attention": None,
        "state": "none",
        "soft_prompts": 0,
        "queries": 0,
        "decoder": False,
    }
    refuse_others(raw, {**plain, "embedding_scale": "model", "rope": None, "lora": None}, "a `vlm` backbone")
    return model_of(raw["pretrained"] or raw["architecture"])


def _listing(kinds: Mapping[str, str]) -> str:
    return " and ".join(f"`{name}` ({kind})" for name, kind in kinds.items())


def _pairs(model: VlmFamily, adaptive: bool) -> Iterator[WeightPair]:
    """Yield the weights of a policy."""
    vision = {"vision_tower.": "vision_tower.vision_model."}
    yield from model_pairs(model, f"{_MODEL}.model", vision, _VOCABULARY)
    yield from expert_pairs(f"{_EXPERT}.model", model.depth, adaptive)
    yield from action_pairs(adaptive)
    if not adaptive:
        yield from layer("model.state_proj", f"{NETWORK}.project.proprio_tokens")


__all__ = ["STEPS", "is_of", "processor", "to_lerobot", "to_policysmith", "transforms"]
