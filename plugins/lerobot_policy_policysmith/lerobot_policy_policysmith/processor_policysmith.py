"""LeRobot's processors around a policysmith policy, which transforms batches itself."""

from __future__ import annotations

from typing import Any

from lerobot.processor import make_default_pre_post_processors

from .configuration_policysmith import PolicysmithConfig


def make_policysmith_pre_post_processors(
    config: PolicysmithConfig, dataset_stats: dict[str, Any] | None = None
) -> tuple[Any, Any]:
    """Return LeRobot's default processors, which rename, add the batch dim and move, and normalize nothing."""
    return make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)
