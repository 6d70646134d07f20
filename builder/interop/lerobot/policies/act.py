"""Conversion of LeRobot's ACT (0.4 to 0.6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor

from .....components.layers.batch_norms import freeze_batch_norms
from .....schemas.errors import WeightsError
from .....schemas.specs import IMAGES
from ..weight_names import WeightPair, layer, packed, pointwise, same, to_ours, to_theirs

STATE, ENVIRONMENT = "observation.state", "observation.environment_state"
_ENCODER = {"linear1": "hidden", "linear2": "out", "norm1": "attention_norm", "norm2": "feedforward_norm"}
_DECODER = {**_ENCODER, "norm2": "cross_norm", "norm3": "feedforward_norm"}
_OPTIONS = {
    "dim_model": "width",
    "n_heads": "heads",
    "dim_feedforward": "feedforward",
    "n_encoder_layers": "encoder_layers",
    "n_decoder_layers": "decoder_layers",
    "feedforward_activation": "activation",
    "dropout": "dropout",
    "latent_dim": "latent",
    "use_vae": "variational",
}
_POSTERIOR = {"kl_weight": "kl_weight", "n_vae_encoder_layers": "posterior_layers"}
"""Options of the encoder of actions, if there is one."""


@dataclass(frozen=True)
class _Sources:
    """Names of the backbones for each observation, or None."""

    state: str | None
    environment: str | None
    images: str | None


def is_of(recipe: Mapping[str, Any]) -> bool:
    """Return whether a resolved recipe belongs to this family."""
    policy = recipe["policy"]
    return bool(policy["type"] == "composed" and policy["head"]["type"] == "act")


def to_policysmith(
    weights: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the sections of a recipe and its weights, or raise WeightsError."""
    features = config["input_features"]
    cameras = [key for key, feature in features.items() if feature["type"] == "VISUAL"]
    _check(config, features, cameras)
    sources = _Sources(
        state="proprio" if STATE in features else None,
        environment="environment" if ENVIRONMENT in features else None,
        images="vision" if cameras else None,
    )
    backbones: dict[str, Any] = {
        name: {"type": "state", "reads": [key]}
        for name, key in ((sources.state, STATE), (sources.environment, ENVIRONMENT))
        if name is not None
    }
    reads = [f"{name}.pooled" for name in backbones]
    if sources.images is not None:
        backbones[sources.images] = {
            "type": "timm",
            "name": config["vision_backbone"],
            "norm": "frozen",
            "reads": cameras,
        }
        reads.append(f"{sources.images}.tokens")
    head: dict[str, Any] = {"type": "act", "reads": reads, "norm": "pre" if config["pre_norm"] else "post"}
    head |= {ours: config[theirs] for theirs, ours in _OPTIONS.items()}
    if config["use_vae"]:
        head |= {ours: config[theirs] for theirs, ours in _POSTERIOR.items()}
        head["posterior_reads"] = [] if sources.state is None else [sources.state]
    policy = {"backbones": backbones, "head": head, "execute": config["n_action_steps"]}
    if config.get("temporal_ensemble_coeff") is not None:
        policy["ensemble"] = config["temporal_ensemble_coeff"]
    optimizer = {
        "lr": config.get("optimizer_lr", 1e-5),
        "weight_decay": config.get("optimizer_weight_decay", 1e-4),
    }
    sections = {
        "data": {
            "horizon": config["chunk_size"],
            "cameras": [key.removeprefix(IMAGES) for key in cameras] or None,
        },
        "policy": policy,
        "training": {"optimizer": optimizer, "schedule": {"type": "constant"}, "clip_norm": 10.0},
    }
    pairs = _pairs(head, sources, config.get("vision_backbone", ""))
    return sections, to_ours(weights, pairs, "ACT")


def to_lerobot(
    weights: Mapping[str, Tensor], content: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return LeRobot's config, without features and normalization, and the weights, or raise WeightsError."""
    policy, data = content["recipe"]["policy"], content["recipe"]["data"]
    head = policy["head"]
    sources = _sources(policy, data)
    config: dict[str, Any] = {
        "type": "act",
        "n_obs_steps": 1,
        "chunk_size": data["horizon"],
        "n_action_steps": policy["execute"] or data["horizon"],
        "temporal_ensemble_coeff": policy["ensemble"],
        "pre_norm": head["norm"] == "pre",
        "pretrained_backbone_weights": None,
        **{theirs: head[ours] for theirs, ours in (_OPTIONS | _POSTERIOR).items()},
    }
    network = ""
    if sources.images is not None:
        network = config["vision_backbone"] = policy["backbones"][sources.images]["name"]
    return config, to_theirs(weights, _pairs(head, sources, network), "ACT")


def _check(config: Mapping[str, Any], features: Mapping[str, Any], cameras: Sequence[str]) -> None:
    """Raise WeightsError for options without a counterpart."""
    strange = [key for key in features if key not in (STATE, ENVIRONMENT, *cameras)]
    strange += [key for key in cameras if not key.startswith(IMAGES)]
    if strange:
        raise WeightsError(f"ACT reads `{strange[0]}`, which has no counterpart")
    if config.get("replace_final_stride_with_dilation"):
        raise WeightsError("`replace_final_stride_with_dilation` has no counterpart in the ResNets of timm")
    if config["feedforward_activation"] not in ("relu", "gelu"):
        raise WeightsError(f"activation `{config['feedforward_activation']}` has no counterpart")


def _sources(policy: Mapping[str, Any], data: Mapping[str, Any]) -> _Sources:
    """Return the backbones of a recipe, or raise WeightsError if LeRobot's ACT does not support them."""
    backbones, head = policy["backbones"], policy["head"]
    found: dict[str, str] = {}
    for name, raw in backbones.items():
        if raw["type"] == "timm" and raw["norm"] == "frozen" and raw["name"].startswith("resnet"):
            role = "images"
        elif raw["type"] == "state" and raw["reads"] in ([STATE], [ENVIRONMENT]):
            role = "state" if raw["reads"] == [STATE] else "environment"
        else:
            raise WeightsError(
                f"LeRobot's ACT has no backbone like `{name}` ({raw['type']}); it reads images with a ResNet with "
                f"`norm: frozen`, and `{STATE}` and `{ENVIRONMENT}` each with a backbone of type `state`"
            )
        if role in found:
            raise WeightsError(
                f"LeRobot's ACT has a single backbone for the inputs of `{found[role]}` and `{name}`"
            )
        found[role] = name
    sources = _Sources(found.get("state"), found.get("environment"), found.get("images"))
    if policy["necks"]:
        raise WeightsError(f"LeRobot's ACT has no necks, but this policy has `{next(iter(policy['necks']))}`")
    if data["observation_steps"] != 1:
        raise WeightsError(f"LeRobot's ACT reads one step, but this policy reads {data['observation_steps']}")
    order = [f"{name}.pooled" for name in (sources.state, sources.environment) if name is not None]
    order += [] if sources.images is None else [f"{sources.images}.tokens"]
    read = [_whole(entry, "tokens") for entry in head["reads"] or sorted(backbones)]
    if sorted(read, key=lambda key: key.endswith(".tokens")) != order:
        raise WeightsError(f"the head reads {', '.join(read)}; LeRobot's ACT reads {', '.join(order)}")
    if head["variational"]:
        pooled = [key for key in read if key.endswith(".pooled")]
        entries = head["posterior_reads"]
        read = pooled if entries is None else [_whole(entry, "pooled") for entry in entries]
        if read != [key for key in pooled if key == f"{sources.state}.pooled"]:
            raise WeightsError(
                f"`posterior_reads` is {', '.join(read) or 'empty'}; in LeRobot it is the state"
            )
    return sources


def _whole(entry: str, output: str) -> str:
    """Return `vision` as `vision.tokens`, given its output."""
    return entry if "." in entry else f"{entry}.{output}"


def _pairs(head: Mapping[str, Any], sources: _Sources, network: str) -> Iterator[WeightPair]:
    """Yield the weights of a policy."""
    yield from _encoder("model.encoder", "head.encoder", head["encoder_layers"], head["norm"])
    for index in range(head["decoder_layers"]):
        theirs, ours = f"model.decoder.layers.{index}", f"head.decoder.layers.{index}"
        yield from _attention(f"{theirs}.self_attn", f"{ours}.attention")
        yield from _attention(f"{theirs}.multihead_attn", f"{ours}.cross")
        for name, own in _DECODER.items():
            yield from layer(f"{theirs}.{name}", f"{ours}.{own}")
    yield from layer("model.decoder.norm", "head.decoder.norm")
    yield from layer("model.encoder_latent_input_proj", "head.latent")
    yield from layer("model.action_head", "head.out")
    yield same("model.encoder_1d_feature_pos_embed.weight", "head.positions")
    yield same("model.decoder_pos_embed.weight", "head.queries")
    for source, short in ((sources.state, "robot"), (sources.environment, "env")):
        if source is not None:
            yield from layer(f"model.encoder_{short}_state_input_proj", f"head.project.{source}_pooled")
    if head["variational"]:
        yield from _posterior(head, sources)
    if sources.images is not None:
        yield from pointwise("model.encoder_img_feat_input_proj", f"head.project.{sources.images}_tokens")
        for key in _resnet(network):
            yield same(f"model.backbone.{key}", f"backbones.{sources.images}.model.{key}")


def _posterior(head: Mapping[str, Any], sources: _Sources) -> Iterator[WeightPair]:
    """Yield the weights of the encoder of actions."""
    theirs, ours = "model.vae_encoder", "head.posterior"
    yield from _encoder(theirs, f"{ours}.encoder", head["posterior_layers"], head["norm"])
    yield same(f"{theirs}_cls_embed.weight", f"{ours}.token")
    yield from layer(f"{theirs}_action_input_proj", f"{ours}.action")
    yield from layer(f"{theirs}_latent_output_proj", f"{ours}.out")
    if sources.state is not None:
        yield from layer(f"{theirs}_robot_state_input_proj", f"{ours}.project.{sources.state}_pooled")
    yield WeightPair(
        f"{theirs}_pos_enc", (f"{ours}.steps",), lambda table: [table[0]], lambda tables: tables[0][None]
    )


def _encoder(theirs: str, ours: str, depth: int, norm: str) -> Iterator[WeightPair]:
    for index in range(depth):
        yield from _attention(f"{theirs}.layers.{index}.self_attn", f"{ours}.layers.{index}.attention")
        for name, own in _ENCODER.items():
            yield from layer(f"{theirs}.layers.{index}.{name}", f"{ours}.layers.{index}.{own}")
    if norm == "pre":
        yield from layer(f"{theirs}.norm", f"{ours}.norm")


def _attention(theirs: str, ours: str) -> Iterator[WeightPair]:
    for kind in ("weight", "bias"):
        yield packed(
            f"{theirs}.in_proj_{kind}", [f"{ours}.{name}.{kind}" for name in ("query", "key", "value")]
        )
    yield from layer(f"{theirs}.out_proj", f"{ours}.out")


def _resnet(name: str) -> list[str]:
    """Return the weight names of a ResNet with frozen batch norms, which equal torchvision's."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
        freeze_batch_norms(model)
    return list(model.state_dict())


__all__ = ["is_of", "to_lerobot", "to_policysmith"]
