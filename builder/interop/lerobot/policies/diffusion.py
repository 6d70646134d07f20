"""Conversion of LeRobot's Diffusion Policy (0.4 to 0.6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .....schemas.errors import WeightsError
from .....schemas.specs import IMAGES
from .. import rgb_encoder
from ..unet import unet_pairs
from ..weight_names import WeightPair, to_ours, to_theirs

STATE, ENVIRONMENT = "observation.state", "observation.environment_state"
_NETWORK = {
    "down_dims": "widths",
    "kernel_size": "kernel",
    "n_groups": "groups",
    "diffusion_step_embed_dim": "time_width",
    "use_film_scale_modulation": "film_scale",
}
_HEAD = {"num_train_timesteps": "train_steps", "num_inference_steps": "steps"}


@dataclass(frozen=True)
class _Layout:
    """Inputs of the head, in the order of LeRobot: state, image encoders, environment state."""

    encoders: Sequence[rgb_encoder.Encoder]
    network: str
    group_norm: bool
    sizes: Mapping[str, int]
    """Number of values per step of each input, in our reading order."""
    order: Sequence[str]
    """Inputs in the order of LeRobot."""

    def columns(self, steps: int, time_width: int) -> Tensor:
        """Return the position in our condition of each value of LeRobot's time and condition.

        LeRobot concatenates features within steps; we concatenate steps within features.
        """
        blocks: dict[str, Tensor] = {}
        place = time_width
        for key, size in self.sizes.items():
            blocks[key] = torch.arange(place, place + steps * size).reshape(steps, size)
            place += steps * size
        condition = torch.cat([blocks[key] for key in self.order], dim=1).flatten()
        return torch.cat([torch.arange(time_width), condition])


def is_of(recipe: Mapping[str, Any]) -> bool:
    """Return whether a resolved recipe belongs to this family."""
    policy = recipe["policy"]
    head = policy.get("head", {})
    return bool(head.get("type") == "diffusion" and head["network"]["type"] == "unet")


def to_policysmith(
    weights: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the sections of a recipe and its weights, or raise WeightsError."""
    features = config["input_features"]
    cameras = [key for key, feature in features.items() if feature["type"] == "VISUAL"]
    strange = [key for key in features if key not in (STATE, ENVIRONMENT, *cameras)]
    strange += [key for key in cameras if not key.startswith(IMAGES)]
    if strange:
        raise WeightsError(f"Diffusion Policy reads `{strange[0]}`, which has no counterpart")
    size = features[cameras[0]]["shape"][1:] if cameras else (0, 0)
    changes = rgb_encoder.transforms(config, size) if cameras else []
    separate = config["use_separate_rgb_encoder_per_camera"] if cameras else False
    grid = rgb_encoder.grid(changes, size)
    seen = [[camera] for camera in cameras] if separate else [cameras] if cameras else []
    names = [
        (f"vision_{i}", f"keypoints_{i}") if separate else ("vision", "keypoints") for i in range(len(seen))
    ]
    encoders = [rgb_encoder.Encoder(*name, read, grid) for name, read in zip(names, seen, strict=True)]
    points = config["spatial_softmax_num_keypoints"] if cameras else 0
    backbones: dict[str, Any] = {"proprio": {"type": "state", "reads": [STATE]}}
    sizes = {"proprio": features[STATE]["shape"][0]}
    sizes |= {encoder.neck: 2 * points * len(encoder.cameras) for encoder in encoders}
    if ENVIRONMENT in features:
        backbones["environment"] = {"type": "state", "reads": [ENVIRONMENT]}
        sizes["environment"] = features[ENVIRONMENT]["shape"][0]
    necks = {}
    for encoder in encoders:
        norm = "group" if config["use_group_norm"] else "batch"
        vision = {"type": "timm", "name": config["vision_backbone"], "norm": norm}
        backbones[encoder.backbone] = {**vision, "reads": list(encoder.cameras)}
        softmax = {"type": "spatial_softmax", "keypoints": points, "width": 2 * points}
        necks[encoder.neck] = {**softmax, "reads": [f"{encoder.backbone}.tokens"]}
    head = {
        "type": "diffusion",
        "reads": [f"{name}.pooled" for name in sizes],
        "network": {"type": "unet", **{ours: _plain(config[theirs]) for theirs, ours in _NETWORK.items()}},
        **{ours: config[theirs] for theirs, ours in _HEAD.items()},
        "predicts": config["prediction_type"],
        "schedule": _schedule(config),
        "sampler": config["noise_scheduler_type"].lower(),
        "clip_sample": config["clip_sample_range"] if config["clip_sample"] else None,
    }
    steps = config["n_obs_steps"]
    sections = {
        "data": {
            "horizon": config["horizon"],
            "observation_steps": steps,
            "past_actions": steps - 1,
            "cameras": [key.removeprefix(IMAGES) for key in cameras] or None,
        },
        "policy": {"backbones": backbones, "necks": necks, "head": head, "execute": config["n_action_steps"]},
        "transforms": changes,
        "training": {
            "optimizer": {
                "lr": config.get("optimizer_lr", 1e-4),
                "betas": _plain(config.get("optimizer_betas", [0.95, 0.999])),
                "weight_decay": config.get("optimizer_weight_decay", 1e-6),
            },
            "schedule": {"type": "cosine", "warmup": config.get("scheduler_warmup_steps", 500)},
        },
    }
    layout = _Layout(
        encoders, config.get("vision_backbone", ""), config.get("use_group_norm", False), sizes, list(sizes)
    )
    action_dim = config["output_features"]["action"]["shape"][0]
    pairs = _pairs(layout, head["network"], steps, action_dim, separate)
    return sections, to_ours(weights, pairs, "Diffusion Policy")


def to_lerobot(
    weights: Mapping[str, Tensor], content: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return LeRobot's config, without features and normalization, and the weights, or raise WeightsError."""
    recipe, specs = content["recipe"], content["specs"]
    policy, data = recipe["policy"], recipe["data"]
    head, network, steps = policy["head"], policy["head"]["network"], data["observation_steps"]
    if data["past_actions"] != steps - 1:
        raise WeightsError(
            f"LeRobot's chunks begin at the oldest observation, with {steps - 1} past actions; this policy has "
            f"{data['past_actions']}"
        )
    if head["predicts"] == "v":
        raise WeightsError("LeRobot's Diffusion Policy predicts the noise or the sample, not v")
    if head["schedule"].get("max_beta", 0.999) != 0.999:
        raise WeightsError("LeRobot's Diffusion Policy limits the noise of a step to 0.999")
    layout = _layout(recipe, specs)
    separate = len(layout.encoders) > 1
    config: dict[str, Any] = {
        "type": "diffusion",
        "n_obs_steps": steps,
        "horizon": data["horizon"],
        "n_action_steps": policy["execute"] or data["horizon"] - steps + 1,
        **{theirs: network[ours] for theirs, ours in _NETWORK.items()},
        **{theirs: head[ours] for theirs, ours in _HEAD.items()},
        "prediction_type": head["predicts"],
        "beta_schedule": head["schedule"]["type"],
        **{f"beta_{end}": head["schedule"][end] for end in ("start", "end") if end in head["schedule"]},
        "noise_scheduler_type": head["sampler"].upper(),
        "clip_sample": head["clip_sample"] is not None,
        "clip_sample_range": head["clip_sample"] or 1.0,
        "do_mask_loss_for_padding": True,
        "pretrained_backbone_weights": None,
    }
    if layout.encoders:
        config |= {
            "vision_backbone": layout.network,
            "use_group_norm": layout.group_norm,
            "use_separate_rgb_encoder_per_camera": separate,
            "spatial_softmax_num_keypoints": policy["necks"][layout.encoders[0].neck]["keypoints"],
            **rgb_encoder.shapes(recipe["transforms"], specs[layout.encoders[0].cameras[0]]["dims"][-2:]),
        }
    pairs = _pairs(layout, network, steps, specs["action"]["dims"][-1], separate)
    return config, to_theirs(weights, pairs, "Diffusion Policy")


def processor(
    content: Mapping[str, Any],
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Return no options and no steps, and the content without the transforms in LeRobot's encoder."""
    recipe = content["recipe"]
    kept = [raw for raw in recipe["transforms"] if raw["type"] not in rgb_encoder.OWN]
    return {}, [], {**content, "recipe": {**recipe, "transforms": kept}}


def _layout(recipe: Mapping[str, Any], specs: Mapping[str, Any]) -> _Layout:
    """Return the inputs of the head, or raise WeightsError if LeRobot does not support the policy."""
    policy = recipe["policy"]
    states: dict[str, str] = {}
    for name, raw in policy["backbones"].items():
        if (
            raw["type"] == "state"
            and raw["reads"] in ([STATE], [ENVIRONMENT])
            and raw["reads"][0] not in states
        ):
            states[raw["reads"][0]] = name
        elif not (raw["type"] == "timm" and raw["name"].startswith("resnet") and raw["norm"] != "frozen"):
            raise WeightsError(
                f"LeRobot's Diffusion Policy has no backbone like `{name}` ({raw['type']}); it reads images with a "
                f"ResNet with `norm: batch` or `norm: group`, and `{STATE}` and `{ENVIRONMENT}` each with a backbone of "
                "type `state`"
            )
    if STATE not in states:
        raise WeightsError(
            f"LeRobot's Diffusion Policy reads `{STATE}`, but no backbone of type `state` does"
        )
    encoders, points, models = [], set(), set()
    for name, raw in sorted(policy["necks"].items(), key=lambda item: str(item[1]["reads"])):
        vision = policy["backbones"].get(raw["reads"][0].partition(".")[0], {"type": ""})
        plain = raw["type"] == "spatial_softmax" and raw["temperature"] == "fixed" and raw["keypoints"]
        if not plain or raw["width"] != 2 * raw["keypoints"] or vision["type"] != "timm":
            raise WeightsError(
                f"LeRobot's Diffusion Policy has no neck like `{name}`; it has a spatial softmax with K keypoints, "
                "`temperature: fixed` and `width` 2 K over the tokens of a ResNet"
            )
        cameras = vision["reads"]
        grid = rgb_encoder.grid(recipe["transforms"], specs[cameras[0]]["dims"][-2:])
        encoders.append(rgb_encoder.Encoder(raw["reads"][0].partition(".")[0], name, cameras, grid))
        points.add(raw["keypoints"])
        models.add((vision["name"], vision["norm"]))
    if (
        len(points) > 1
        or len(models) > 1
        or (len(encoders) > 1 and any(len(e.cameras) > 1 for e in encoders))
    ):
        raise WeightsError(
            "LeRobot's Diffusion Policy has one encoder for all cameras or equal ones for each; this policy has "
            + " and ".join(f"`{encoder.backbone}`" for encoder in encoders)
        )
    known = {states[STATE]: specs[STATE]["dims"][-1]}
    known |= {e.neck: 2 * policy["necks"][e.neck]["keypoints"] * len(e.cameras) for e in encoders}
    if ENVIRONMENT in states:
        known[states[ENVIRONMENT]] = specs[ENVIRONMENT]["dims"][-1]
    reads = [entry.removesuffix(".pooled") for entry in policy["head"]["reads"] or sorted(known)]
    if sorted(reads) != sorted(known):
        raise WeightsError(f"the head reads {', '.join(reads)}; in LeRobot it reads {', '.join(known)}")
    network, norm = next(iter(models), ("", ""))
    return _Layout(encoders, network, norm == "group", {key: known[key] for key in reads}, list(known))


def _pairs(
    layout: _Layout, network: Mapping[str, Any], steps: int, action_dim: int, separate: bool
) -> Iterator[WeightPair]:
    """Yield the weights of a policy."""
    yield from unet_pairs(network["widths"], action_dim, layout.columns(steps, network["time_width"]))
    for index, encoder in enumerate(layout.encoders):
        theirs = f"diffusion.rgb_encoder.{index}" if separate else "diffusion.rgb_encoder"
        yield from rgb_encoder.encoder_pairs(encoder, theirs, layout.network, layout.group_norm)


def _schedule(config: Mapping[str, Any]) -> dict[str, Any]:
    schedule = {"type": config["beta_schedule"]}
    if schedule["type"] == "squaredcos_cap_v2":
        return schedule
    if schedule["type"] not in ("linear", "scaled_linear"):
        raise WeightsError(f"the noise schedule `{schedule['type']}` has no counterpart")
    return {**schedule, "start": config["beta_start"], "end": config["beta_end"]}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


__all__ = ["is_of", "processor", "to_lerobot", "to_policysmith"]
