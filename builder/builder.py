"""The Python side of `build-and-train`.

from policysmith.builder import Builder

builder = Builder.from_recipe("recipes/vit_mlp.yaml").override({"training.steps": 500})
builder.check()                      # every problem at once, as RecipeError.diagnostics
policy = builder.build()             # a transformers model with initial weights
result = builder.train()             # trains, saves, and gives the trained policy
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset
from transformers import PretrainedConfig

from ..schemas.document import Document, parse
from . import assembly, handwritten, plan, rehearsal
from .data.dataset import LeRobotDataset
from .data.mixture import Mixture
from .plan import PolicyPlan
from .plan_data import plan_data
from .policy import BasePolicyModel, RecipePolicy
from .policy.composed import freeze
from .policy.pipeline import SamplePipeline, TransformedDataset
from .policy.registry import DataCollatorRegistry
from .recipe import LoadedRecipe, load_recipe, open_document
from .sources import DataPlan, Source, Windows
from .training import batches, loop
from .training.agreement import refuse_existing
from .training.job import Job, Result
from .training.logs import FileLog, Reporter
from .training.placement import make_accelerator


@dataclass(frozen=True)
class Builder:
    """A recipe on its way to a policy. Immutable: `override` gives a new one."""

    source: str | Path | Mapping[str, Any] | Document
    overrides: tuple[Mapping[str, Any] | Sequence[str], ...] = ()
    allow_imports: bool = False

    @classmethod
    def from_recipe(
        cls, source: str | Path | Mapping[str, Any] | Document, *, allow_imports: bool = False
    ) -> Builder:
        """A builder for a recipe: a path, a mapping, a parsed document, or YAML text (recognised by its line breaks).

        `allow_imports` lets the files under `imports:` run.
        """
        return cls(source, (), allow_imports)

    def override(self, changes: Mapping[str, Any]) -> Builder:
        """The same with some values changed, by dotted path (`{"training.steps": 500}`) or nested mapping."""
        return Builder(self.source, (*self.overrides, dict(changes)), self.allow_imports)

    @cached_property
    def recipe(self) -> LoadedRecipe:
        """The validated recipe. Raises RecipeError with every problem."""
        source = self.source
        text = isinstance(source, str) and "\n" in source
        document = parse(str(source)) if text else open_document(source)
        for change in self.overrides:
            document = open_document(document, change)
        return load_recipe(document, allow_imports=self.allow_imports)

    def check(self) -> Builder:
        """Validate, wire and rehearse without allocating the policy. Raises RecipeError with every problem.

        Weights files on this machine are read; a hub is asked for no more than configs and tokenizers.
        """
        _ = self.recipe, self._data, self.summary
        if self._config is not None:
            handwritten.attach(self.recipe, self._config, self._data)
        return self

    @cached_property
    def summary(self) -> assembly.Summary | None:
        """Sizes of a composed policy; None for a hand-written one, which only its constructor knows."""
        if self._composed is None:
            return None
        return rehearsal.rehearse(self.recipe, self._data, self._composed)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The datasets, with what is used of each; of several robots, in the order of their names."""
        return self._data.sources

    def build(self, device: str = "cpu") -> BasePolicyModel:
        """The policy with its initial weights, pretrained ones included, in evaluation mode.

        On `meta` nothing is allocated. Raises RecipeError.
        """
        self.check()
        if self._composed is not None:
            policy = assembly.assemble(self.recipe, self._data, self._composed, device)
            freeze(policy, list(self.summary.unused if self.summary is not None else ()))
            return policy
        assert self._config is not None
        return handwritten.assemble(self.recipe, self._config, self._data, device)

    def train(
        self,
        *,
        output: str | Path | None = None,
        resume: bool = False,
        device: str | None = None,
        reporters: Sequence[Reporter] = (),
        profile: bool = False,
    ) -> Result:
        """Build, train and save. Raises RecipeError, TrainingError, CheckpointError, and Interrupted for a signal.

        `output` is the run's directory, by default the recipe's `output`, by default `runs/<name>`. `resume`
        continues from its newest checkpoint. `device` is `cpu`, `cuda`, or None for the best there is.
        `profile` leaves a table of where the time of a step goes, and a trace, in `<output>/profile`.
        """
        directory = self.run_directory(output)
        self.check()
        section = self.recipe.recipe.training
        accelerator = make_accelerator(section, device)
        if not resume:
            refuse_existing(directory, accelerator)
        with accelerator.main_process_first():
            training, validation = self.datasets()
        policy = self.build()
        source = _source(training)
        assembly.record_data(policy, source)
        job = Job(
            policy=policy,
            dataset=training,
            collate=self.collate(policy),
            section=section,
            directory=directory,
            recipe=self.recipe.resolved(),
            fingerprint=source.fingerprint,
            validation=validation,
            keyed=isinstance(training, TransformedDataset),
            profile=profile,
            shares=source.shares if isinstance(source, Mixture) else None,
        )
        if not accelerator.is_main_process:
            return loop.train(job, accelerator, (), resume=resume)
        log = FileLog(directory, self._description(), self.recipe.document.root.span.source.text)
        try:
            return loop.train(job, accelerator, (log, *reporters), resume=resume)
        finally:
            log.close()

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any] | None]:
        """Training samples, and validation samples where the recipe holds episodes out. Decodes videos once."""
        splits = [self._dataset("training"), self._dataset("validation")]
        return splits[0], splits[1]  # type: ignore[return-value]

    def collate(self, policy: BasePolicyModel) -> batches.Collate:
        """What turns samples of `datasets()` into batches for the policy."""
        if isinstance(policy, RecipePolicy):
            return policy.collator
        return DataCollatorRegistry.get(policy.config.model_type)

    def run_directory(self, output: str | Path | None = None) -> Path:
        """Where the run goes."""
        recipe = self.recipe.recipe
        return Path(output or recipe.output or Path("runs") / recipe.name)

    def _dataset(self, split: Literal["training", "validation"]) -> Dataset[Any] | None:
        dataset = self._data.open(split)
        if self._config is None or dataset is None:
            return dataset
        policy_config = handwritten.attach(self.recipe, self._config, self._data)
        return TransformedDataset(dataset, SamplePipeline(policy_config))

    @cached_property
    def _config(self) -> PretrainedConfig | None:
        return None if self.recipe.recipe.policy.type == "composed" else handwritten.configure(self.recipe)

    @cached_property
    def _data(self) -> DataPlan:
        windows = Windows.of(self.recipe.recipe.data)
        if self._config is not None:
            windows = handwritten.windows(self.recipe, self._config)
        return plan_data(self.recipe, windows)

    @cached_property
    def _composed(self) -> PolicyPlan | None:
        return plan.plan_policy(self.recipe, self._data) if self._config is None else None

    def _description(self) -> dict[str, Any]:
        return {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "recipe_directory": str(self.recipe.directory.resolve()),
            "data": self._data.paths,
            **assembly.provenance(self.recipe),
        }


def _source(dataset: Any) -> LeRobotDataset | Mixture:
    source = getattr(dataset, "source", dataset)
    assert isinstance(source, LeRobotDataset | Mixture)
    return source


__all__ = ["Builder"]
