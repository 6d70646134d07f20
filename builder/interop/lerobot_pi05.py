"""pi0.5 of LeRobot as a policy of ours, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import lerobot_pi0
from .lerobot_pi0 import to_lerobot, to_policysmith


def is_of(recipe: Mapping[str, Any]) -> bool:
    """Whether a resolved recipe is of this family."""
    return lerobot_pi0.is_of(recipe, time="adarms")


__all__ = ["is_of", "to_lerobot", "to_policysmith"]
