"""`RecipeConfig`: everything a composed policy is rebuilt from, as plain JSON."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from ..data.time_steps import TimeSteps
from .storage import loading

MODEL_TYPE = "policysmith_policy"
CONTENT = ("recipe", "specs", "facts", "statistics", "robots", "signals", "provenance")
"""Fields of the config."""
_AUTO_MAP = {"AutoConfig": "policy_shim.RecipeConfig", "AutoModel": "policy_shim.RecipePolicy"}


class RecipeConfig(PretrainedConfig):
    """Config of a composed policy: its recipe, and what the recipe leaves to dataset and files."""

    model_type = MODEL_TYPE

    recipe: dict[str, Any] | None = None
    """The resolved recipe: every default filled in."""
    specs: dict[str, Any] | None = None
    """Specs of the dataset's samples, by key."""
    facts: dict[str, Any] | None = None
    """Values that parts learned outside the recipe, by part."""
    statistics: dict[str, Any] | None = None
    """Statistics of the training episodes, by key; for several robots, by name and key."""
    robots: dict[str, Any] | None = None
    """Specs of each robot's own dataset, by name; None for a single robot."""
    signals: dict[str, Any] | None = None
    """Names of the dimensions of states and actions, and frames per second; for several robots, by name."""
    provenance: dict[str, Any] | None = None
    """Hashes of recipe and dataset, versions of the packages."""

    def transform(self) -> tuple[None, list[int], list[int]]:
        """Return observation and action time steps; a composed policy runs its transforms itself."""
        data = (self.recipe or {})["data"]
        steps = TimeSteps.of(
            horizon=data["horizon"],
            observation_steps=data["observation_steps"],
            past_actions=data.get("past_actions", 0),
        )
        return None, list(steps.observations), list(steps.actions)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a config as transformers does. Raise CheckpointError for values that no config can have."""
        with loading.readable(config_dict):
            return super().from_dict({**config_dict, "auto_map": _AUTO_MAP}, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: a checkpoint holds an import shim, never a copy of the source."""

    def to_dict(self) -> dict[str, Any]:
        """Return the config as JSON values, under the static model type that every checkpoint has."""
        static = {"model_type": MODEL_TYPE, "architectures": ["RecipePolicy"], "auto_map": _AUTO_MAP}
        values = super().to_dict()
        values.pop("content", None)  # checkpoints of version 0.1 hold everything twice
        return {**values, **static}


__all__ = ["CONTENT", "MODEL_TYPE", "RecipeConfig"]
