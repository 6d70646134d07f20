"""Memory of training by part, and the changes of a recipe that would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..recipe.loaded import LoadedRecipe
from .summary import Summary

_LORA_SHARE = 0.01
"""Adapters train about this share of the weights that they adapt."""
_FLOAT, _MOMENTS, _CODED = 4, 8, 2.03
"""Bytes of a weight or gradient, of its two moments, and of moments in 8 bits with their scales."""


@dataclass(frozen=True)
class Change:
    """A change of the recipe, such as `-o training.ema=null`, and the bytes that it saves."""

    override: str
    saves: int
    price: str
    """Cost of the change: memory, time or accuracy."""


def held_bytes(loaded: LoadedRecipe, summary: Summary) -> dict[str, int]:
    """Return the bytes of weights, gradients, moments and average, by part; activations are not included."""
    each = summary.moments / max(summary.trainable, 1)
    average = _FLOAT if loaded.sections.training.ema is not None else 0
    return {
        part: int(count * (_FLOAT + average) + summary.trains[part] * (_FLOAT + each))
        for part, count in summary.parts.items()
    }


def changes(loaded: LoadedRecipe, summary: Summary) -> list[Change]:
    """Return the changes that save memory, those that save most first."""
    return sorted(_changes(loaded, summary), key=lambda change: -change.saves)


def _changes(loaded: LoadedRecipe, summary: Summary) -> Iterator[Change]:
    training = loaded.sections.training
    eight_bit = training.optimizer.states == "8bit"
    if not eight_bit:
        saved = int(summary.trainable * (_MOMENTS - _CODED))
        yield Change("training.optimizer.states=8bit", saved, "rounding adds noise to the steps")
    if training.ema is not None:
        yield Change("training.ema=null", _FLOAT * summary.parameters, "no average of the weights")
    a_weight = _FLOAT + (_CODED if eight_bit else _MOMENTS)
    for name, (part, config) in loaded.backbones.items():
        key = f"backbones.{name}"
        trained = summary.trains.get(key, 0)
        if not trained or key in summary.adapted:
            continue
        if "lora" in part.Config.model_fields and getattr(config, "pretrained", None) is not None:
            saved = int(trained * (1 - _LORA_SHARE) * a_weight)
            override = f"policy.backbones.{name}.lora={{rank: 16}}"
            yield Change(override, saved, "only low-rank adapters of it train")
        if getattr(config, "pretrained", None) is not None:
            patterns = ", ".join([*loaded.resolved()["policy"]["freeze"], f"backbones.{name}.*"])
            yield Change(f"policy.freeze=[{patterns}]", int(trained * a_weight), "it stays as pretrained")


__all__ = ["Change", "changes", "held_bytes"]
