"""Shared conversion of LeRobot's pi0, pi0.5 and SmolVLA: an expert beside a vision-language model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ....components.pretrained.models import read_config
from ....components.vlms import FAMILIES, family_of
from ....components.vlms.base import VlmFamily
from ....schemas.errors import WeightsError
from ....schemas.specs import IMAGES
from .weight_names import WeightPair, layer, same

NETWORK = "head.network"
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


def is_expert(recipe: Mapping[str, Any], **options: str) -> bool:
    """Return whether a resolved recipe has an expert with these options."""
    policy = recipe["policy"]
    if policy.get("type") != "composed" or policy["head"]["type"] != "flow_matching":
        return False
    return bool({"type": "expert", **options}.items() <= policy["head"]["network"].items())


def model_of(source: str, depth: int | None = None) -> VlmFamily:
    """Return the vision-language model with a name or in a directory, with its first `depth` layers."""
    return family_of(read_config(source, tuple(FAMILIES), "choose a vision-language model"), depth)


def model_pairs(
    model: VlmFamily, theirs: str, renamed: Mapping[str, str], vocabulary: int | None = None
) -> Iterator[WeightPair]:
    """Yield the weights of the vision-language model; `renamed` maps prefixes of our names to theirs.

    If their `vocabulary` is smaller than ours, the other tokens are zeros, which no tokenizer produces.
    """
    with torch.device("meta"):
        built = model.build()
    embedding = next(name for name, part in built.named_modules() if part is model.embedding(built))
    for key in built.state_dict():
        old = next((old for old in renamed if key.startswith(old)), "")
        pair = same(f"{theirs}.{renamed.get(old, '')}{key.removeprefix(old)}", f"backbones.vlm.model.{key}")
        cut = vocabulary is not None and key == f"{embedding}.weight" and vocabulary < model.vocabulary
        yield _cut(pair, vocabulary or 0, model.vocabulary) if cut else pair


def _cut(pair: WeightPair, theirs: int, ours: int) -> WeightPair:
    """Return the pair with only the first rows of our weight in theirs."""
    return replace(
        pair,
        forth=lambda weight: [F.pad(weight, (0, 0, 0, ours - theirs))],
        back=lambda weights: weights[0][:theirs],
    )


def expert_pairs(theirs: str, depth: int, adaptive: bool) -> Iterator[WeightPair]:
    """Yield the weights of the expert's layers and its last norm."""
    yield from _norm(f"{theirs}.norm", f"{NETWORK}.norm", adaptive)
    for index in range(depth):
        old, new = f"{theirs}.layers.{index}", f"{NETWORK}.layers.{index}"
        for name, own in _LAYER.items():
            yield same(f"{old}.{name}.weight", f"{new}.{own}.weight")
        for name, own in _NORMS.items():
            yield from _norm(f"{old}.{name}", f"{new}.{own}", adaptive)


def _norm(theirs: str, ours: str, adaptive: bool) -> Iterator[WeightPair]:
    if adaptive:
        yield from layer(f"{theirs}.dense", f"{ours}.modulation")
    else:
        yield same(f"{theirs}.weight", f"{ours}.weight")


def action_pairs(adaptive: bool) -> Iterator[WeightPair]:
    """Yield the weights of the layers that map actions and times to tokens, and tokens to velocities."""
    yield from layer("model.action_in_proj", f"{NETWORK}.action_in")
    yield from layer("model.action_out_proj", f"{NETWORK}.action_out")
    for name, place in (("in", 0), ("out", 2)):
        yield from layer(f"model.{'' if adaptive else 'action_'}time_mlp_{name}", f"{NETWORK}.time.{place}")


def sizes_of(weights: Mapping[str, Tensor], model: VlmFamily) -> dict[str, int]:
    """Return the sizes of the expert with these weights, under our names."""
    return {
        "width": weights[f"{NETWORK}.action_in.weight"].shape[0],
        "hidden": weights[f"{NETWORK}.layers.0.mlp.gate.weight"].shape[0],
        "heads": weights[f"{NETWORK}.layers.0.query.weight"].shape[0] // model.head_size,
    }


def sections_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections `data` and `training` of a recipe."""
    features = config.get("input_features", {})
    cameras = [key.removeprefix(IMAGES) for key, feature in features.items() if feature["type"] == "VISUAL"]
    lr = config.get("optimizer_lr", 2.5e-5)
    return {
        "data": {"horizon": config.get("chunk_size", 50), "cameras": cameras or None},
        "training": {
            "steps": config.get("scheduler_decay_steps", 30_000),
            "optimizer": {
                "lr": lr,
                "betas": list(config.get("optimizer_betas", (0.9, 0.95))),
                "eps": config.get("optimizer_eps", 1e-8),
                "weight_decay": config.get("optimizer_weight_decay", 0.01),
            },
            "schedule": {
                "type": "cosine",
                "warmup": config.get("scheduler_warmup_steps", 1000),
                "final": config.get("scheduler_decay_lr", 2.5e-6) / lr,
            },
            "clip_norm": float(config.get("optimizer_grad_clip_norm", 1.0)),
        },
    }


def reads_of(config: Mapping[str, Any], state: bool) -> dict[str, list[str]]:
    """Return the inputs of a `vlm` backbone: cameras in LeRobot's order, prompt, and optionally the state."""
    cameras = [
        key for key, feature in config.get("input_features", {}).items() if feature["type"] == "VISUAL"
    ]
    return (
        {"reads": [*cameras, "task.input_ids", *(["observation.state"] if state else [])]} if cameras else {}
    )


def refuse_others(config: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Raise WeightsError for an option with another value than the other project supports."""
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise WeightsError(
                f"{what} with `{key}: {config[key]}` cannot be converted, only with `{key}: {value}`"
            )


__all__ = [
    "NETWORK", "action_pairs", "expert_pairs", "is_expert", "model_of", "model_pairs", "reads_of", "refuse_others",
    "sections_of", "sizes_of",
]  # fmt: skip
