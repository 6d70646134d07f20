"""Building, training and evaluation of policies. Importing it registers their classes with transformers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

# if torchao is installed, transformers imports it, and torch warns about its registration of classes
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

from .policy import BasePolicyModel, DataCollatorRegistry, RecipeConfig, RecipePolicy

if TYPE_CHECKING:
    from .builder import Builder


def __getattr__(name: str) -> Any:
    """Import `Builder` on first use: a robot that runs a policy needs nothing of training."""
    if name != "Builder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .builder import Builder

    globals()[name] = Builder
    return Builder


__all__ = ["BasePolicyModel", "Builder", "DataCollatorRegistry", "RecipeConfig", "RecipePolicy"]
