"""A policy and its batches without a dataset: shapes come from the work, values from a seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policysmith.builder import Builder
from policysmith.builder.fine_tuning.initialization import Initialization
from policysmith.builder.planning.sources import DataPlan
from policysmith.schemas.specs import Kind, Range, Spec

from .workloads import Inputs, Work

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
_TASK = "open the drawer"


@dataclass(frozen=True)
class SyntheticPlan(DataPlan):
    """Data with specs and nothing else. Every dimension has mean 0, deviation 1 and values from -3 to 3."""

    @property
    def statistics(self) -> dict[str, Any]:
        summary = {"mean": 0.0, "std": 1.0, "min": -3.0, "max": 3.0, "q01": -2.3, "q99": 2.3}
        return {
            key: {name: [value] * spec.width for name, value in summary.items()}
            for key, spec in self.specs.items()
            if spec.kind in (Kind.STATE, Kind.ACTION)
        }


@dataclass(frozen=True)
class SyntheticBuilder(Builder):
    """A builder whose demonstrations have the shapes of a work."""

    inputs: Inputs | None = None

    @classmethod
    def of(cls, work: Work, changes: Iterable[str] = (), **more: Any) -> SyntheticBuilder:
        """Build for a work; `changes` are overrides as on a command line, `more` options of the training section."""
        training = {f"training.{name}": value for name, value in more.items()}
        away: dict[str, Any] = {"evaluation": None}  # no simulator has the work's cameras and widths
        return cls(RECIPES / work.recipe, (away, work.changes, training, list(changes)), inputs=work.inputs)

    @cached_property
    def initialization(self) -> Initialization:
        assert self.inputs is not None
        time_steps = self._kind.time_steps()
        steps, why = len(time_steps.observations), "synthetic"
        specs = {
            f"observation.images.{name}": Spec(Kind.IMAGE, ("B", steps, 3, *size), why, range=Range.BYTES)
            for name, size in self.inputs.cameras.items()
        }
        specs |= {key: Spec(Kind.STATE, ("B", *size), why) for key, size in self.inputs.states.items()}
        specs["task"] = Spec(Kind.TEXT, ("B",), why)
        specs["action"] = Spec(Kind.ACTION, ("B", len(time_steps.actions), self.inputs.action), why)
        data = SyntheticPlan(time_steps, (), specs)
        return Initialization.of(self.recipe, data, None, resumed=False)

    def batches(self, policy: Any, size: int, count: int, device: torch.device) -> list[dict[str, Any]]:
        """Return so many batches of the policy's collator, on the device."""
        generator = torch.Generator().manual_seed(self.recipe.sections.training.seed)
        made = []
        for _ in range(count):
            batch = policy.collator([self._sample(generator) for _ in range(size)])
            made.append({k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()})
        return made

    def _sample(self, generator: torch.Generator) -> dict[str, Any]:
        """Draw noise for images and states, and a smooth movement for actions; one chunk in ten ends with its episode."""
        sample: dict[str, Any] = {"task": _TASK}
        for key, spec in self.initialization.data.specs.items():
            if spec.kind is Kind.IMAGE:
                sample[key] = torch.randint(256, _dims(spec), dtype=torch.uint8, generator=generator)
            elif spec.kind is Kind.STATE:
                sample[key] = torch.randn(_dims(spec), generator=generator)
            elif spec.kind is Kind.ACTION:
                steps, width = _dims(spec)
                phase = torch.rand(width, generator=generator) * 6.28
                sample[key] = torch.sin(torch.arange(steps)[:, None] / 8 + phase)
                over = torch.rand(1, generator=generator).item() < 0.1
                sample["action_is_pad"] = torch.arange(steps) >= (steps // 2 if over else steps)
        return sample


def _dims(spec: Spec) -> list[int]:
    return [int(dim) for dim in spec.dims[1:]]
