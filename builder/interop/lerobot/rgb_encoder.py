"""Image encoder of LeRobot's Diffusion Policy, a ResNet with keypoints, as parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor

from ....components.images.specs import height_width
from ....components.layers.batch_norms import group_norms
from ....schemas.errors import WeightsError
from .weight_names import WeightPair, layer, pointwise, same

OWN = ("resize", "crop")
"""Transforms that are part of the encoder."""
_STAGES = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
"""Positions of a ResNet's modules in LeRobot's `nn.Sequential`."""
_STRIDE = 32


@dataclass(frozen=True)
class Encoder:
    """A ResNet and the keypoints of its feature maps (height, width), for some cameras."""

    backbone: str
    neck: str
    cameras: Sequence[str]
    grid: tuple[int, int]


def encoder_pairs(encoder: Encoder, theirs: str, network: str, group_norm: bool) -> Iterator[WeightPair]:
    """Yield the weights of the encoder called `theirs` in LeRobot."""
    for name in _resnet(network, group_norm):
        stage, _, rest = name.partition(".")
        yield same(f"{theirs}.backbone.{_STAGES[stage]}.{rest}", f"backbones.{encoder.backbone}.model.{name}")
    yield from pointwise(f"{theirs}.pool.nets", f"necks.{encoder.neck}.maps")
    yield from layer(f"{theirs}.out", f"necks.{encoder.neck}.project.0")
    yield _positions(f"{theirs}.pool.pos_grid", encoder.grid)


def _positions(name: str, grid: tuple[int, int]) -> WeightPair:
    """Return the coordinates of a feature map, which LeRobot saves and we compute."""
    y, x = (torch.linspace(-1.0, 1.0, size, dtype=torch.float64) for size in grid)
    places = torch.cartesian_prod(y, x).flip(-1).float()

    def check(held: Tensor) -> list[Tensor]:
        if held.shape != places.shape or not torch.allclose(held, places, atol=1e-6):
            raise WeightsError(f"`{name}` does not match a map of {grid[0]} x {grid[1]} positions")
        return []

    return WeightPair(name, (), check, lambda _: places)


def _resnet(name: str, group_norm: bool) -> list[str]:
    """Return the names of a ResNet's weights, which timm and torchvision share."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
        if group_norm:
            group_norms(model)
    return list(model.state_dict())


def transforms(config: Mapping[str, Any], size: Sequence[int]) -> list[dict[str, Any]]:
    """Return the transforms of images (height, width) in LeRobot's encoder.

    Raises:
        WeightsError: The crop is centered differently.
    """
    changes: list[dict[str, Any]] = []
    if config.get("resize_shape") is not None:
        size = list(config["resize_shape"])
        changes.append({"type": "resize", "size": size})
    if config.get("crop_shape") is not None:
        crop = list(config["crop_shape"])
        corner = _center(size, crop)
        change: dict[str, Any] = {"type": "crop", "size": crop}
        if not config["crop_is_random"]:
            change["corner"] = corner
        elif corner != [(whole - part) // 2 for whole, part in zip(size, crop, strict=True)]:
            raise WeightsError(
                f"LeRobot crops {crop} from {list(size)} at {corner}, one pixel off the center of our `crop`"
            )
        changes.append(change)
    return changes


def _center(size: Sequence[int], crop: Sequence[int]) -> list[int]:
    """Return the corner of torchvision's CenterCrop, which rounds halves to even numbers."""
    return [round((whole - part) / 2.0) for whole, part in zip(size, crop, strict=True)]


def shapes(transforms: Sequence[Mapping[str, Any]], size: Sequence[int]) -> dict[str, Any]:
    """Return LeRobot's options for the transforms of images (height, width) in its encoder.

    Raises:
        WeightsError: The encoder does not support a transform.
    """
    options: dict[str, Any] = {"resize_shape": None, "crop_shape": None, "crop_is_random": True}
    for change in transforms:
        if change["type"] not in OWN:
            continue
        name, after = f"{change['type']}_shape", list(height_width(change["size"]))
        if options["crop_shape"] is not None or options[name] is not None or change["keys"] is not None:
            raise WeightsError("LeRobot's encoder resizes all images once, then crops them once")
        options[name] = after
        if change["type"] == "crop":
            options["crop_is_random"] = change["corner"] is None
            if change["corner"] not in (None, _center(size, after)):
                raise WeightsError(f"LeRobot's encoder crops at the center, not at {change['corner']}")
        size = after
    return options


def grid(transforms: Sequence[Mapping[str, Any]], size: Sequence[int]) -> tuple[int, int]:
    """Return the size of a ResNet's last feature map for images (height, width), after the transforms."""
    for change in transforms:
        if change["type"] in OWN:
            size = height_width(change["size"])
    height, width = (-(-side // _STRIDE) for side in size)
    return height, width


__all__ = ["OWN", "Encoder", "encoder_pairs", "grid", "shapes", "transforms"]
