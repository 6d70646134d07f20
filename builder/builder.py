"""The Python side of `build-and-train`.

from policysmith.builder import Builder

builder = Builder.from_recipe("recipes/vit_mlp.yaml").override({"training.steps": 500})
builder.check()                      # every problem at once, as RecipeError.diagnostics
policy = builder.build()             # a transformers model with initial weights
result = builder.train()             # trains, saves, and gives the trained policy
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset
from transformers import PretrainedConfig

from ..schemas.diagnostics import Diagnostic
from ..schemas.document import Document, parse
from ..schemas.errors import CheckpointError, RecipeError
from ..schemas.paths import expanded
from . import composed, handwritten, runs
from .data.dataset import LeRobotDataset
from .data.mixture import Mixture
from .fine_tuning.base_policy import Kept, Start
from .fine_tuning.transfer import Taken
from .planning import dry_run
from .planning.data import plan_data
from .planning.policy import PolicyPlan, plan_policy
from .planning.sources import DataPlan, Source, Windows
from .policy import MODEL_TYPE, BasePolicyModel, RecipePolicy
from .policy.freezing import freeze
from .policy.registry import DataCollatorRegistry
from .policy.sample_pipeline import KEY, SamplePipeline, TransformedDataset
from .recipe.load import LoadedRecipe, load_recipe, open_document
from .recipe.standalone import standalone
from .training import batches, loop
from .training.distributed.accelerator import make_accelerator, require_device
from .training.distributed.agreement import refuse_existing
from .training.job import Job, Result
from .training.monitoring.logs import FileLog, Reporter
from .training.optim.schedule import short_run_warning


@dataclass(frozen=True)
class Builder:
    """A recipe on its way to a policy. Immutable: `override` gives a new one."""

    source: str | Path | Mapping[str, Any] | Document
    overrides: tuple[Mapping[str, Any] | Sequence[str], ...] = ()
    allow_imports: bool = False
    checkpoint: Path | None = None
    """The checkpoint that a run goes on from; `policy.init` of the recipe is not read then."""

    @classmethod
    def from_recipe(
        cls, source: str | Path | Mapping[str, Any] | Document, *, allow_imports: bool = False
    ) -> Builder:
        """A builder for a recipe: a path, a mapping, a parsed document, or YAML text (recognised by its line breaks).

        `allow_imports` lets the files under `imports:` run.
        """
        return cls(source, (), allow_imports)

    def override(self, changes: Mapping[str, Any] | str) -> Builder:
        """Return the same builder with some values changed.

        `changes` maps dotted paths to values (`{"training.steps": 500}`), nests mappings, or is the text of one
        change as on the command line (`"training.steps=500"`). Raise TypeError for anything else.
        """
        if not isinstance(changes, Mapping | str):
            raise TypeError(
                f"override takes a mapping of paths to values, or a text `path=value`, not {type(changes).__name__}"
            )
        change = [changes] if isinstance(changes, str) else dict(changes)
        return replace(self, overrides=(*self.overrides, change))

    def resuming(self, output: str | Path | None = None) -> Builder:
        """The same for a run that goes on from its newest checkpoint, where there is one."""
        return replace(self, checkpoint=runs.latest(self.run_directory(output)))

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

        A hand-written policy is built and run once, on the CPU. Weights files on this machine are read; a hub is asked for no more than configs and tokenizers.
        """
        _ = self.recipe, self._data, self.summary
        if self._judged:
            raise RecipeError(self._judged)
        if self._config is not None and "_tried" not in vars(self):
            _ = self._rehearsed
            vars(self)["_tried"] = True
        return self

    @cached_property
    def _judged(self) -> list[Diagnostic]:
        """Findings where the policy does not fit the environment that it is to be evaluated in."""
        from .evaluation.environment import environment_findings

        if self._composed is not None:
            return environment_findings(
                self.recipe, MODEL_TYPE, composed.content(self.recipe, self._data, self._composed)
            )
        assert self._config is not None
        config = handwritten.attach(self.recipe, copy.deepcopy(self._config), self._data)
        return environment_findings(self.recipe, config.model_type, getattr(config, KEY))

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for a person before a run begins: what a policy to start from gives, and doubts that stop nothing."""
        self.check()
        lines: list[str] = []
        if self._start is not None and self.checkpoint is None:
            lines += self._start.report(self.recipe, self._data, vars(self)["_taken"], self._begun[1])
        warnings = (
            self.summary.warnings
            if self.summary is not None
            else handwritten.warnings(self.recipe, self._data)
        )
        short = short_run_warning(self.recipe.recipe.training)
        warnings = (*warnings, *self._data.warnings, *([short] if short else []))
        return (*lines, *(f"warning: {text}" for text in warnings))

    @cached_property
    def summary(self) -> composed.Summary | None:
        """Sizes of a composed policy; None for a hand-written one, which only its constructor knows."""
        if self._composed is None:
            return None
        return dry_run.rehearse(self.recipe, self._data, self._composed, self._take)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The datasets, with what is used of each; of several robots, in the order of their names."""
        return self._data.sources

    def build(self, device: str = "cpu") -> BasePolicyModel:
        """The policy with its initial weights, pretrained ones included, in evaluation mode.

        On `meta` nothing is allocated. Raises RecipeError, and TrainingError for a device that is not there.
        """
        require_device(device)
        self.check()
        if self._composed is not None:
            policy = composed.assemble(self.recipe, self._data, self._composed, device, self._covered)
            self._begin(policy, fill=device != "meta")
            freeze(policy, list(self.summary.unused if self.summary is not None else ()))
            return policy
        held: BasePolicyModel | None = vars(self).pop("_rehearsed", None) if device == "cpu" else None
        return held if held is not None else self._assemble_by_hand(device)

    def _assemble_by_hand(self, device: str) -> BasePolicyModel:
        assert self._config is not None
        policy = handwritten.assemble(self.recipe, self._config, self._data, device)
        self._begin(policy, fill=device != "meta")
        return policy

    def _begin(self, policy: BasePolicyModel, *, fill: bool) -> None:
        """Give a new policy what it takes of the one it starts from, and note that in its config."""
        if self._start is None:
            return
        provenance = policy.content["provenance"]
        if self.checkpoint is not None:
            provenance["init"] = self._start.provenance
            return
        taken, kept = self._take(policy, fill=fill), self._begun[1]
        provenance["init"] = {**self._start.identity, "kept": [*kept.kept], "computed": [*kept.computed]}
        if taken is not None:
            provenance["init"] |= taken.to_json()

    def _take(self, policy: BasePolicyModel, *, fill: bool = False) -> Taken | None:
        """Return what a policy takes of the one it starts from, filled in where asked."""
        if self._start is None or self.checkpoint is not None:
            return None
        taken = self._start.take(self.recipe, policy, fill=fill)
        vars(self)["_taken"] = taken
        return taken

    def _covered(self, policy: RecipePolicy) -> set[str]:
        """Backbones that take all their weights of the policy they start from, or of a checkpoint."""
        if self.checkpoint is not None:
            return set(policy.backbones)
        taken = self._take(policy)
        if taken is None:
            return set()
        anew = {name.split(".")[1] for name in taken.anew if name.startswith("backbones.")}
        return set(policy.backbones) - anew

    def train(
        self,
        *,
        output: str | Path | None = None,
        resume: bool = False,
        device: str | None = None,
        reporters: Sequence[Reporter] = (),
        profile: bool = False,
        verify: bool = True,
    ) -> Result:
        """Build, train and save. Raises RecipeError, TrainingError, CheckpointError, and Interrupted for a signal.

        `output` is the run's directory, by default the recipe's `output`, by default `runs/<name>`. `resume`
        continues from its newest checkpoint, whose files must be those that were saved, unless `verify` is off. No
        other process can train in the directory meanwhile. `device` is `cpu`, `cuda`, or None for the best there is.
        `profile` leaves a table of where the time of a step goes, and a trace, in `<output>/profile`.
        """
        directory = self.claim(output, resume=resume)
        if resume and self.checkpoint is None and runs.latest(directory) is not None:
            return self.resuming(output).train(
                output=output,
                resume=True,
                device=device,
                reporters=reporters,
                profile=profile,
                verify=verify,
            )
        if os.environ.get("RANK", "0") != "0":  # the main process holds the directory for all
            return self._train(directory, resume, device, reporters, profile, verify)
        with runs.held(directory):
            runs.tidy(directory, self.recipe.recipe.training.keep)
            return self._train(directory, resume, device, reporters, profile, verify)

    def claim(self, output: str | Path | None = None, *, resume: bool = False) -> Path:
        """The run's directory. Raises CheckpointError where no run can be kept there, or another is already."""
        directory = self.run_directory(output)
        runs.usable(directory)
        alone = os.environ.get("WORLD_SIZE", "1") == "1"  # several processes agree once they can talk
        if not resume and alone and runs.latest(directory) is not None:
            raise CheckpointError(
                f"{directory} already holds a run; continue it with `--resume`, choose another `--output`, or remove it"
            )
        return directory

    def _train(
        self,
        directory: Path,
        resume: bool,
        device: str | None,
        reporters: Sequence[Reporter],
        profile: bool,
        verify: bool,
    ) -> Result:
        notes = self.notes
        section = self.recipe.recipe.training
        accelerator = make_accelerator(section, device)
        if not resume:
            refuse_existing(directory, accelerator)
        with accelerator.main_process_first():
            training, validation = self.datasets()
        policy = self.build()
        source = _source(training)
        composed.record_data(policy, source)
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
            verify=verify,
            shares=source.shares if isinstance(source, Mixture) else None,
            notes=notes,
        )
        if not accelerator.is_main_process:
            return loop.train(job, accelerator, (), resume=resume)
        description = self._description() | {"init": policy.content["provenance"].get("init")}
        log = FileLog(directory, description, standalone(self.recipe.document, located=True))
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
        return expanded(output or recipe.output or Path("runs") / recipe.name)

    def _dataset(self, split: Literal["training", "validation"]) -> Dataset[Any] | None:
        dataset = self._data.open(split)
        if self._config is None or dataset is None:
            return dataset
        policy_config = handwritten.attach(self.recipe, self._config, self._data)
        return TransformedDataset(dataset, SamplePipeline(policy_config))

    @cached_property
    def _config(self) -> PretrainedConfig | None:
        return None if self.recipe.recipe.policy.type == "composed" else handwritten.configure(self.recipe)

    @property
    def _data(self) -> DataPlan:
        return self._begun[0]

    @cached_property
    def _begun(self) -> tuple[DataPlan, Kept]:
        """The data, and what of its statistics is as the policy to start from has it."""
        windows = Windows.of(self.recipe.recipe.data)
        if self._config is not None:
            windows = handwritten.windows(self.recipe, self._config)
        planned = plan_data(self.recipe, windows)
        if self._start is None:
            return planned, Kept()
        self._start.refuse_other_order(self.recipe, planned)
        return self._start.over(planned)

    @cached_property
    def _start(self) -> Start | None:
        if self.checkpoint is not None:
            return Start.resumed(self.recipe, self.checkpoint)
        return Start.find(self.recipe, allow_imports=self.allow_imports)

    @cached_property
    def _rehearsed(self) -> BasePolicyModel:
        """A hand-written policy as it begins, which has run once."""
        policy = self._assemble_by_hand("cpu")
        handwritten.rehearse(self.recipe, policy, self._data)
        return policy

    @cached_property
    def _composed(self) -> PolicyPlan | None:
        if self._config is not None:
            return None
        held = self._start.facts(self.recipe.resolved(), self._data) if self._start is not None else None
        return plan_policy(self.recipe, self._data, held)

    def _description(self) -> dict[str, Any]:
        return {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "recipe_directory": str(self.recipe.directory.resolve()),
            "data": self._data.paths,
            **composed.provenance(self.recipe),
        }


def _source(dataset: Any) -> LeRobotDataset | Mixture:
    source = getattr(dataset, "source", dataset)
    assert isinstance(source, LeRobotDataset | Mixture)
    return source


__all__ = ["Builder"]
