"""policysmith composes, trains and evaluates robot manipulation policies from one YAML recipe.

    import policysmith

    result = policysmith.Builder.from_recipe("recipes/vit_mlp.yaml").train(output="runs/first")
    policy = policysmith.load("runs/first")
    action = policy.select_action(observation)

Importing it imports no torch: each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .builder import BasePolicyModel, Builder, DataCollatorRegistry
    from .builder.data.writing.record import record
    from .builder.evaluation import evaluate
    from .builder.robots.base import Robot
    from .builder.saved_policy import load
    from .builder.serving.client import RemotePolicy, connect
    from .schemas.errors import (
        CheckpointError,
        DatasetError,
        Interrupted,
        PolicysmithError,
        RecipeError,
        RegistryError,
        RobotError,
        ServerError,
        SimulatorError,
        SpecError,
        TrainingError,
        WeightsError,
    )

    __version__: str

__all__ = [
    "BasePolicyModel",
    "Builder",
    "CheckpointError",
    "DataCollatorRegistry",
    "DatasetError",
    "Interrupted",
    "PolicysmithError",
    "RecipeError",
    "RegistryError",
    "RemotePolicy",
    "Robot",
    "RobotError",
    "ServerError",
    "SimulatorError",
    "SpecError",
    "TrainingError",
    "WeightsError",
    "__version__",
    "connect",
    "evaluate",
    "load",
    "record",
]

_HOMES = {
    "BasePolicyModel": "builder",
    "Builder": "builder",
    "DataCollatorRegistry": "builder",
    "RemotePolicy": "builder.serving.client",
    "Robot": "builder.robots.base",
    "connect": "builder.serving.client",
    "evaluate": "builder.evaluation",
    "load": "builder.saved_policy",
    "record": "builder.data.writing.record",
}
"""Modules of the names that need torch; the others are in `schemas.errors`."""


def __getattr__(name: str) -> Any:
    """Import a public name, or read the version, on first use."""
    if name == "__version__":
        from importlib.metadata import version  # takes 0.2 s

        value: Any = version("policysmith")
    elif name in __all__:
        value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'schemas.errors')}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
