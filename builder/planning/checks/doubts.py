"""Warnings: doubts about a recipe that do not stop a run, each with a code that `silence` can name."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ....components.images.transform import ImageTransform
from ....schemas.diagnostics import Diagnostic, WarningCode
from ....schemas.errors import SpecError
from ....schemas.recipe import TrainingSection
from ....schemas.specs import IMAGES, Kind, Range
from ....schemas.yaml.nodes import KeyPath
from ...data.signals import Signals
from ...machine import training_memory
from ...recipe.loaded import LoadedRecipe
from ..policy import PolicyPlan
from ..sources import DataPlan
from ..summary import Summary

_FEWEST, _MOST = 0.1, 10_000.0  # epochs
_NORMALIZE = "add `{type: normalize, mode: mean_std}` to `transforms`"


def run_doubts(loaded: LoadedRecipe, data: DataPlan, summary: Summary | None) -> list[Diagnostic]:
    """Return the doubts about a run: its length, its data, its memory and options without effect."""
    return [
        *_warmup(loaded),
        *_without_effect(loaded),
        *_epochs(loaded, data),
        *([] if summary is None else _memory(loaded, summary)),
        *_frame_rates(loaded, data),
        *_dropped(loaded, data),
        *_window(loaded, data),
        *_validation(loaded, data),
    ]


def normalization_doubts(loaded: LoadedRecipe, plan: PolicyPlan) -> list[Diagnostic]:
    """Return the doubts about actions and states that reach a part as recorded, in units of the robot."""
    wiring, found = plan.wiring, list[Diagnostic]()
    if wiring.given["action"].range is not Range.NORMALIZED:
        message = "the head learns actions that are not normalized: their scale sets the scale of the loss"
        found.append(_doubt(loaded, "W001 not-normalized", plan.parts.head.path, message, _NORMALIZE))
    for name, inputs in wiring.reads.items():
        for key, spec in inputs.items():
            if spec.kind is Kind.STATE and spec.range is not Range.NORMALIZED:
                message = f"`{key}` is read without normalization"
                place = plan.parts.backbones[name].path
                found.append(_doubt(loaded, "W001 not-normalized", place, message, _NORMALIZE))
    return found


def transform_doubts(loaded: LoadedRecipe, plan: PolicyPlan) -> list[Diagnostic]:
    """Return the doubts about transforms of images that no backbone reads."""
    read = {key for inputs in plan.wiring.reads.values() for key in inputs}
    found = []
    for index, site in enumerate(plan.parts.transforms):
        if not issubclass(site.part, ImageTransform):
            continue
        if not read & site.part.cameras(site.config, plan.wiring.into(index)).keys():
            message = f"`{site.config.type}` changes images that no backbone reads"
            help = "remove it, or add a backbone that reads images"
            found.append(_doubt(loaded, "W004 no-effect", site.path, message, help, "no effect"))
    return found


def _doubt(
    loaded: LoadedRecipe, code: WarningCode, path: KeyPath, message: str, help: str = "", label: str = ""
) -> Diagnostic:
    return loaded.diagnostic(path, SpecError(message, label=label, help=help), code=code)


def _warmup(loaded: LoadedRecipe) -> Iterator[Diagnostic]:
    training = loaded.sections.training
    warmup, steps = training.schedule.warmup, training.steps
    if warmup > steps:
        message = (
            f"the learning rate ends at {steps / warmup:.0%} of `training.optimizer.lr`: the warm-up takes {warmup} steps, "
            f"the run {steps}"
        )
        place = ("training", "schedule", "warmup")
        help = "shorten the warm-up or take more steps"
        yield _doubt(loaded, "W003 warmup-unfinished", place, message, help, f"more than {steps}")


def _without_effect(loaded: LoadedRecipe) -> Iterator[Diagnostic]:
    for place, why, help in _idle_options(loaded):
        message = f"`{'.'.join(map(str, place))}` {why}"
        yield _doubt(loaded, "W004 no-effect", place, message, help, "no effect")


def _idle_options(loaded: LoadedRecipe) -> Iterator[tuple[KeyPath, str, str]]:
    """Yield the options without effect: place, what is wrong with it, cure."""
    training, data = loaded.sections.training, loaded.sections.data
    default = TrainingSection.model_fields["save_minutes"].default
    if training.save_every is not None and training.save_minutes not in (None, default):
        yield (
            ("training", "save_minutes"),
            "has no effect beside `training.save_every`",
            "remove one of the two",
        )
    if training.schedule.type == "constant" and training.schedule.final:
        yield ("training", "schedule", "final"), "has no effect on a constant learning rate", "remove it"
    if training.sharding != "off" and os.environ.get("WORLD_SIZE", "1") == "1":
        why = "needs several processes, and a run of a single one is refused"
        yield ("training", "sharding"), why, "start several with torchrun, or remove it"
    if data.split_seed and not data.validation:
        yield (
            ("data", "split_seed"),
            "has no effect without `data.validation`",
            "remove it, or hold episodes out",
        )
    for index, group in enumerate(training.optimizer.groups):
        if group.lr_scale == 1.0 and group.weight_decay is None:
            place = ("training", "optimizer", "groups", index)
            yield place, "has no effect without `lr_scale` or `weight_decay`", "set one of them"


def _epochs(loaded: LoadedRecipe, data: DataPlan) -> Iterator[Diagnostic]:
    training, epochs = loaded.sections.training, epochs_of(loaded, data)
    if _FEWEST <= epochs <= _MOST:
        return
    seen = f"{epochs:.1%} of the training frames" if epochs < 1 else f"every frame {epochs:,.0f} times"
    message = f"{training.steps:,} steps of {training.batch_size * training.accumulate} samples see {seen}"
    help = "take more steps" if epochs < 1 else "take fewer steps, or train on more episodes"
    yield _doubt(loaded, "W005 epochs", ("training", "steps"), message, help, f"{epochs:,.2g} epochs")


def epochs_of(loaded: LoadedRecipe, data: DataPlan) -> float:
    """Return how often one process sees each training frame."""
    training = loaded.sections.training
    frames = sum(source.frames(source.training) for source in data.sources)
    return training.steps * training.batch_size * training.accumulate / frames


def _memory(loaded: LoadedRecipe, summary: Summary) -> Iterator[Diagnostic]:
    training = loaded.sections.training
    needed = summary.training_bytes + (4 * summary.parameters if training.ema is not None else 0)
    memory, owner = training_memory()
    if training.sharding == "off" and needed > memory:
        message = (
            f"training needs {needed / 2**30:,.1f} GiB for weights, gradients and optimizer, and {owner} has "
            f"{memory / 2**30:,.1f} GiB"
        )
        help = "`policysmith summary RECIPE` shows what would make it fit"
        yield _doubt(loaded, "W006 out-of-memory", ("policy",), message, help)


def _frame_rates(loaded: LoadedRecipe, data: DataPlan) -> Iterator[Diagnostic]:
    first, *others = data.sources
    for other in others:
        if Signals.of(first.info).other_rate(Signals.of(other.info)):
            message = (
                f"`{first.name}` has {first.info.fps:g} frames per second and `{other.name}` {other.info.fps:g}: the same "
                "chunk of actions lasts differently"
            )
            yield _doubt(loaded, "W008 frame-rates", other.place, message)


def _dropped(loaded: LoadedRecipe, data: DataPlan) -> Iterator[Diagnostic]:
    for source in data.sources:
        for key, text in source.info.unread.items():
            if key.startswith(IMAGES):
                message = f"`{key}` is {text}, images stored as numbers, and is ignored"
                yield _doubt(loaded, "W009 dropped-column", (*source.place, "path"), message)
    for place, message in data.dropped:
        yield _doubt(loaded, "W009 dropped-column", place, message)


def _window(loaded: LoadedRecipe, data: DataPlan) -> Iterator[Diagnostic]:
    steps = loaded.sections.data.observation_steps
    longest = max(max(source.info.episode_lengths) for source in data.sources)
    if steps > longest:
        message = f"a sample reads {steps} observations, and the longest episode has {longest} frames"
        help = "lower it: missing observations repeat the first frame"
        place = ("data", "observation_steps")
        yield _doubt(loaded, "W011 long-window", place, message, help, f"more than {longest}")


def _validation(loaded: LoadedRecipe, data: DataPlan) -> Iterator[Diagnostic]:
    for source in data.sources:
        held, used = len(source.validation), len(source.training)
        if held > used:
            message = f"{held} episodes are held out and {used} train"
            help = "lower `data.validation`"
            yield _doubt(loaded, "W012 large-validation", ("data", "validation"), message, help)
            return


__all__ = ["epochs_of", "normalization_doubts", "run_doubts", "transform_doubts"]
