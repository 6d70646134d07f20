"""LeRobot's config of a policysmith policy: a recipe to train, or the content of a trained policy."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig


@PreTrainedConfig.register_subclass("policysmith")
@dataclass
class PolicysmithConfig(PreTrainedConfig):
    """A policy that a policysmith recipe describes.

    Sizes and the presets of optimizer and schedule are those of the recipe.
    """

    recipe: str = ""
    """Recipe of a new policy; LeRobot's dataset takes the place of `data.path`."""
    content: str = ""
    """Content of policysmith's `config.json`, from which a trained policy is rebuilt, as JSON."""
    chunk_size: int = 1
    """Actions of a chunk; filled in."""
    n_action_steps: int = 1
    """Actions run from each chunk; filled in."""
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    )
    """Nothing is normalized outside of the policy, whose recipe has transforms for it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.content or self.recipe):
            return
        self.n_obs_steps = len(self.observation_delta_indices)
        self.chunk_size = len(self.action_delta_indices)
        self.n_action_steps = self.resolved["policy"].get("execute") or self.chunk_size

    @property
    def resolved(self) -> dict[str, Any]:
        """The resolved recipe. Raise ValueError without one, RecipeError for a wrong one."""
        if self.content:
            recipe: dict[str, Any] = json.loads(self.content)["recipe"]
            return recipe
        if not self.recipe:
            raise ValueError("a policysmith policy needs a recipe; add `--policy.recipe=FILE.yaml`")
        from policysmith import Builder

        resolved: dict[str, Any] = Builder.from_recipe(Path(self.recipe)).recipe.resolved()
        for key in ("columns", "sources"):
            if resolved["data"].get(key):
                raise ValueError(
                    f"{self.recipe} sets `data.{key}`, which LeRobot's datasets do not have; train it with "
                    "`build-and-train`"
                )
        return resolved

    @property
    def observation_delta_indices(self) -> list[int]:
        """Time steps of the observations, relative to now."""
        return self._time_steps()[0]

    @property
    def action_delta_indices(self) -> list[int]:
        """Time steps of the actions of a chunk, relative to now."""
        return self._time_steps()[1]

    @property
    def reward_delta_indices(self) -> None:
        """None: no rewards are read."""
        return None

    def _time_steps(self) -> tuple[list[int], list[int]]:
        from policysmith.builder.policy import RecipeConfig

        _, observations, actions = RecipeConfig(recipe=self.resolved).transform()
        return observations, actions

    def get_optimizer_preset(self) -> AdamWConfig:
        """Return the recipe's AdamW, without groups of its own."""
        training = self.resolved["training"]
        chosen = training["optimizer"]
        return AdamWConfig(
            lr=chosen["lr"],
            betas=tuple(chosen["betas"]),
            eps=chosen["eps"],
            weight_decay=chosen["weight_decay"],
            grad_clip_norm=training["clip_norm"] or 0.0,
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig | None:
        """Return the recipe's cosine schedule, or None for others."""
        training = self.resolved["training"]
        schedule, lr = training["schedule"], training["optimizer"]["lr"]
        if schedule["type"] != "cosine":
            return None
        return CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=schedule["warmup"],
            num_decay_steps=training["steps"],
            peak_lr=lr,
            decay_lr=lr * schedule["final"],
        )

    def validate_features(self) -> None:
        """Do nothing: building the policy compares the recipe with the dataset."""
