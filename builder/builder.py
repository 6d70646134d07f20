"""`Builder`: the Python side of `build-and-train`.

builder = Builder.from_recipe("recipes/vit_mlp.yaml").override({"training.steps": 500})
builder.check()                      # every problem at once, as RecipeError.diagnostics
policy = builder.build()             # a transformers model with initial weights
result = builder.train()             # trains, saves, and returns the trained policy
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ..schemas.diagnostics import Diagnostic, in_order
from ..schemas.errors import CheckpointError
from ..schemas.paths import expanded
from ..schemas.yaml.document import Document, parse
from . import runs
from .composed import Composed
from .data.dataset import LeRobotDataset
from .data.mixture import Mixture
from .fine_tuning.base_policy import BasePolicy
from .fine_tuning.initialization import Initialization
from .handwritten import Handwritten
from .planning.checks.doubts import epochs_of, run_doubts
from .planning.data import plan_data
from .planning.dry_run import BATCH, construct, run_once
from .planning.policy import PolicyPlan
from .planning.sources import DataPlan, DataSource
from .planning.summary import Summary
from .policy import BasePolicyModel
from .provenance import git_state, hardware
from .recipe.load import load_recipe, open_document
from .recipe.loaded import LoadedRecipe
from .recipe.standalone import standalone
from .saved_policy import SavedPolicy
from .training import batches, loop
from .training.distributed.accelerator import make_accelerator, require_device
from .training.distributed.agreement import refuse_existing
from .training.job import Job, Result
from .training.monitoring.flops import ModelFlops
from .training.monitoring.logs import FileLog, Reporter
from .training.monitoring.run_page import RunPage
from .training.monitoring.trackers import Trackers

Overrides = Mapping[str, Any] | Sequence[str]


@dataclass(frozen=True)
class Builder:
    """A recipe on its way to a policy. Immutable: `override` returns a new one."""

    source: str | Path | Mapping[str, Any] | Document
    overrides: tuple[Overrides, ...] = ()
    allow_imports: bool = False
    checkpoint: Path | None = None
    """Checkpoint that a run resumes from; `policy.init` of the recipe is then not read."""

    @classmethod
    def from_recipe(
        cls, source: str | Path | Mapping[str, Any] | Document, *, allow_imports: bool = False
    ) -> Builder:
        """Return a builder for a recipe.

        Args:
            source: A path, a mapping, a parsed document, or YAML text, recognized by its line breaks.
            allow_imports: Run the files under `imports:`.
        """
        return cls(source, (), allow_imports)

    def override(self, changes: Mapping[str, Any] | str) -> Builder:
        """Return a builder with some values changed.

        Args:
            changes: A mapping of dotted paths to values (`{"training.steps": 500}`), nested mappings, or the
                text of one change as on the command line (`"training.steps=500"`).

        Raises:
            TypeError: `changes` is something else.
        """
        if not isinstance(changes, Mapping | str):
            raise TypeError(
                f"override takes a mapping of paths to values, or a text `path=value`, not {type(changes).__name__}"
            )
        change: Overrides = [changes] if isinstance(changes, str) else dict(changes)
        return replace(self, overrides=(*self.overrides, change))

    def resuming(self, output: str | Path | None = None) -> Builder:
        """Return a builder for a run that resumes from its newest checkpoint, if it has one."""
        return replace(self, checkpoint=runs.latest(self.run_directory(output)))

    @cached_property
    def recipe(self) -> LoadedRecipe:
        """The validated recipe. Raises RecipeError with every problem."""
        source = self.source
        is_text = isinstance(source, str) and "\n" in source
        document = parse(str(source)) if is_text else open_document(source)
        for change in self.overrides:
            document = open_document(document, change)
        loaded = load_recipe(document, allow_imports=self.allow_imports)
        if self.checkpoint is None:
            return loaded
        saved = SavedPolicy.find(self.checkpoint, verify=False)
        return replace(loaded, resumed=(saved.recipe, saved.recipe_directory))

    def check(self, *, deep: bool = False) -> Builder:
        """Validate, wire and dry-run the recipe without allocating the policy, and return the builder itself.

        If `deep`, also open every video, and take a batch of real samples through the policy.

        A hand-written policy is built and run once, on the CPU. Weights files on this machine are read; a hub
        is asked only for configs and tokenizers.

        Raises:
            RecipeError: The recipe is wrong; it carries every problem.
        """
        self._kind.check(self.initialization)
        if deep:
            self._kind.check_deep(self.initialization)
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines to print before a run: what the base policy provides, and warnings."""
        return (*self.initialization_report, *(warning.line for warning in self.warnings))

    @property
    def initialization_report(self) -> tuple[str, ...]:
        """Lines on the weights that a policy takes of the one that it starts from."""
        return tuple(self._kind.check(self.initialization).report)

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        """Doubts that do not stop a run, without those that `silence` of the recipe names."""
        init, checked = self.initialization, self._kind.check(self.initialization)
        found = [*checked.warnings, *init.doubts(), *run_doubts(self.recipe, init.data, checked.summary)]
        silenced = self.recipe.sections.silence
        return tuple(in_order([each for each in found if each.code.split(" ")[0] not in silenced]))

    @property
    def epochs(self) -> float:
        """Number of times that one process sees each training frame."""
        return epochs_of(self.recipe, self.initialization.data)

    @property
    def plan(self) -> PolicyPlan | None:
        """The wired policy; None for a hand-written one. Raises RecipeError like `check`."""
        return self._kind.plan_for(self.initialization) if isinstance(self._kind, Composed) else None

    @property
    def operations(self) -> int | None:
        """Floating-point operations of a sample, forward and backward; None for a hand-written policy."""
        return None if self.plan is None else count_on_meta(self.recipe, self.initialization.data, self.plan)

    @property
    def summary(self) -> Summary | None:
        """Sizes of a composed policy; None for a hand-written one. Raises RecipeError like `check`."""
        return self._kind.check(self.initialization).summary

    @property
    def sources(self) -> tuple[DataSource, ...]:
        """The datasets in use; for several robots, in the order of their names."""
        return self.initialization.data.sources

    def build(self, device: str = "cpu") -> BasePolicyModel:
        """Return the policy with its initial weights, pretrained ones included, in evaluation mode.

        On `meta` nothing is allocated.

        Raises:
            RecipeError: The recipe is wrong.
            TrainingError: The device is not available.
        """
        require_device(device)
        return self._kind.build(self.initialization, device)

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
        """Build, train and save a policy.

        Args:
            output: Directory of the run; by default the recipe's `output`, by default `runs/<name>`. No other
                process can train there meanwhile.
            resume: Continue from its newest checkpoint.
            device: `cpu`, `cuda`, or None for the best available.
            reporters: Receivers of progress and log lines.
            profile: Write a table of the time of each phase of a step, and a trace, to `<output>/profile`.
            verify: Verify the files of the checkpoint to resume from.

        Raises:
            RecipeError: The recipe is wrong.
            CheckpointError: The directory holds another run, or its checkpoint cannot be resumed from or
                written.
            TrainingError: Training cannot continue.
            Interrupted: A signal stopped the run.
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
            runs.tidy(directory, self.recipe.sections.training.keep)
            return self._train(directory, resume, device, reporters, profile, verify)

    def claim(self, output: str | Path | None = None, *, resume: bool = False) -> Path:
        """Return the directory of the run.

        Raise CheckpointError if no run can be written or started there.
        """
        directory = self.run_directory(output)
        alone = os.environ.get("WORLD_SIZE", "1") == "1"  # several processes agree once they can talk
        runs.check_claimable(directory, alone=alone)
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
        section = self.recipe.sections.training
        accelerator = make_accelerator(section, device)
        if not resume:
            refuse_existing(directory, accelerator)
        with accelerator.main_process_first():
            samples = self.initialization.data.open("training")
            held_out = self.initialization.data.open("validation")
        assert samples is not None
        policy = self.build()
        _record_run(policy, samples, self.recipe.directory)
        job = Job(
            policy=policy,
            dataset=self._kind.dataset(samples, self.initialization),
            collate=self.collate(policy),
            section=section,
            directory=directory,
            recipe=self.recipe.resolved(),
            fingerprint=samples.fingerprint,
            validation=None if held_out is None else self._kind.dataset(held_out, self.initialization),
            keyed=self._kind.keyed,
            profile=profile,
            verify=verify,
            shares=samples.shares if isinstance(samples, Mixture) else None,
            notes=notes,
        )
        if not accelerator.is_main_process:
            return loop.train(job, accelerator, (), resume=resume)
        description = self._description() | policy.content["provenance"]
        text = standalone(self.recipe.document, located=True)
        log = FileLog(directory, description, text)
        trackers = Trackers(section.track, directory, job.recipe, text)
        drawn = RunPage(directory, text)
        try:
            return loop.train(job, accelerator, (log, trackers, drawn, *reporters), resume=resume)
        finally:
            drawn.close()
            trackers.close()
            log.close()

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any] | None]:
        """Return training samples, and validation samples if the recipe holds episodes out.

        Videos are decoded once and cached.
        """
        data = self.initialization.data
        training, validation = data.open("training"), data.open("validation")
        assert training is not None
        return self._kind.dataset(training, self.initialization), (
            None if validation is None else self._kind.dataset(validation, self.initialization)
        )

    def collate(self, policy: BasePolicyModel) -> batches.Collate:
        """Return the function from samples of `datasets()` to batches for the policy."""
        return policy.collator

    def run_directory(self, output: str | Path | None = None) -> Path:
        """Return the directory of the run. Raise CheckpointError for an empty path."""
        sections = self.recipe.sections
        if output is not None and not str(output):
            raise CheckpointError("`output` is empty; name a directory, or leave it out for `runs/<name>`")
        return expanded(output or sections.output or Path("runs") / sections.name)

    @cached_property
    def _kind(self) -> Composed | Handwritten:
        """The stages of the policy that the recipe describes."""
        return (Composed if self.recipe.sections.policy.type == "composed" else Handwritten)(self.recipe)

    @cached_property
    def initialization(self) -> Initialization:
        """The data, and the weights that a new policy begins with."""
        data = plan_data(self.recipe, self._kind.time_steps())
        if self.checkpoint is not None:
            base = BasePolicy.of_resumed_run(self.recipe, self.checkpoint)
        else:
            base = BasePolicy.find(self.recipe, allow_imports=self.allow_imports)
        return Initialization.of(self.recipe, data, base, resumed=self.checkpoint is not None)

    def _description(self) -> dict[str, Any]:
        return {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "recipe_directory": str(self.recipe.origin.resolve()),
            "data": self.initialization.data.paths,
            "hardware": hardware(),
        }


def count_on_meta(loaded: LoadedRecipe, data: DataPlan, plan: PolicyPlan) -> int:
    """Return the operations of a sample, forward and backward, counted without any data."""
    policy = construct(loaded, data, plan)
    policy.directory = loaded.directory
    with ModelFlops() as count:
        run_once(loaded, policy, plan, sample=False).backward()
    return int(count.get_total_flops()) // BATCH


def _record_run(policy: BasePolicyModel, samples: LeRobotDataset | Mixture, directory: Path) -> None:
    """Record the fingerprints of the training data, and the git state of the recipe, in a policy's config."""
    provenance = policy.content["provenance"]
    if (state := git_state(directory)) is not None:
        provenance["git"] = state
    provenance["dataset"] = samples.fingerprint
    if isinstance(samples, Mixture):
        provenance["datasets"] = samples.fingerprints


__all__ = ["Builder"]
