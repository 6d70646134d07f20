"""Timm backbones, and images for them."""

from __future__ import annotations

from typing import Any

import torch

from policysmith.components.backbones.timm import Timm
from policysmith.schemas.specs import Kind, Spec

KEY = "observation.images.a"


def camera(height: int = 64, width: int = 64, steps: int = 1) -> dict[str, Spec]:
    return {KEY: Spec(Kind.IMAGE, ("B", steps, 3, height, width))}


def build(name: str, inputs: dict[str, Spec] | None = None, **options: Any) -> Timm:
    config, inputs = Timm.Config(type="timm", name=name, **options), inputs or camera()
    facts = Timm.facts(config)
    Timm.specs(config, inputs, facts)
    part = Timm(config, inputs, facts)
    part.load_pretrained()
    return part.eval()


def images(inputs: dict[str, Spec], size: int = 2) -> dict[str, torch.Tensor]:
    return {KEY: torch.randn(size, *(int(dim) for dim in inputs[KEY].dims[1:]))}
