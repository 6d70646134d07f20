"""Parts of policies, and everything that a part needs in one import.

    from policysmith.components import BACKBONES, Backbone, BackboneConfig, Feature, Kind, Spec, SpecError

Names are imported on first use; importing this package imports no part and no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..schemas.errors import RegistryError, SpecError, WeightsError
    from ..schemas.part import (
        BackboneConfig,
        Count,
        Depth,
        HeadConfig,
        NeckConfig,
        NetworkConfig,
        PartConfig,
        Section,
    )
    from ..schemas.specs import Kind, Range, Spec, Specs
    from .base import (
        ActionHead,
        Backbone,
        Batch,
        Collator,
        Context,
        Facts,
        Feature,
        Neck,
        Network,
        Transform,
    )
    from .features import action_spec, chunk_size, features_of, masked_mean, select
    from .images.transform import ImageTransform, ImageTransformConfig, OccasionalTransform
    from .randomness.per_sample import Draws
    from .registry import BACKBONES, COLLATORS, HEADS, NECKS, NETWORKS, TRANSFORMS
    from .shares import WHOLE, Shares

__all__ = [
    "BACKBONES",
    "COLLATORS",
    "HEADS",
    "NECKS",
    "NETWORKS",
    "TRANSFORMS",
    "WHOLE",
    "ActionHead",
    "Backbone",
    "BackboneConfig",
    "Batch",
    "Collator",
    "Context",
    "Count",
    "Depth",
    "Draws",
    "Facts",
    "Feature",
    "HeadConfig",
    "ImageTransform",
    "ImageTransformConfig",
    "Kind",
    "Neck",
    "NeckConfig",
    "Network",
    "NetworkConfig",
    "OccasionalTransform",
    "PartConfig",
    "Range",
    "RegistryError",
    "Section",
    "Shares",
    "Spec",
    "SpecError",
    "Specs",
    "Transform",
    "WeightsError",
    "action_spec",
    "chunk_size",
    "features_of",
    "masked_mean",
    "select",
]

_MODULES = (
    "..schemas.errors",
    "..schemas.part",
    "..schemas.specs",
    ".base",
    ".features",
    ".images.transform",
    ".randomness.per_sample",
    ".registry",
    ".shares",
)
"""Homes of the exported names, cheapest first."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in _MODULES:
            module = import_module(home, __name__)
            if name in vars(module):
                globals()[name] = vars(module)[name]
                return globals()[name]
    raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
