"""Rules across values of a recipe: values that are valid alone and wrong together."""

from __future__ import annotations

from collections.abc import Iterable

from ...schemas.diagnostics import Diagnostic, ErrorCode
from ...schemas.errors import SpecError
from ...schemas.recipe import DataSection, EvaluationSection, Recipe
from ...schemas.wording import did_you_mean
from ...schemas.yaml.document import Document
from ...schemas.yaml.nodes import KeyPath
from ..data.time_steps import TimeSteps
from .init_cameras import init_camera_faults
from .loaded import LoadedRecipe
from .validate import located


def contradictions(document: Document, recipe: Recipe) -> list[Diagnostic]:
    """Return a finding for every contradiction among the sections of a recipe."""
    return [
        *_robots(document, recipe.data),
        *_evaluated_robot(document, recipe.data, recipe.evaluation),
        *_unknown_metrics(document, recipe),
        *(located(document, *fault, code="E007 invalid-value") for fault in init_camera_faults(recipe)),
    ]


def _finding(
    document: Document,
    path: KeyPath,
    code: ErrorCode,
    message: str,
    label: str,
    help: str,
    related: KeyPath | None = None,
) -> Diagnostic:
    also = [] if related is None else [(related, "conflicts with this")]
    return located(document, path, SpecError(message, label=label, help=help), code=code, related=also)


def _robots(document: Document, data: DataSection) -> list[Diagnostic]:
    """Return findings for `data` of one robot that lacks its dataset, and of several that says too much."""
    if data.sources is None:
        if data.path is not None:
            return []
        help = "name a dataset, or remove it and name those of several robots under `sources`"
        message = "`data.path` must be a string, found nothing (null)"
        return [_finding(document, ("data", "path"), "E005 wrong-type", message, "expected a string", help)]
    found = []
    if data.path is not None:
        help = "remove one: `path` names one dataset, `sources` those of several robots"
        message = "`data.path` and `data.sources` exclude each other"
        place: KeyPath = ("data", "sources")
        found.append(
            _finding(document, place, "E007 invalid-value", message, "conflicts", help, ("data", "path"))
        )
    for key in ("cameras", "columns", "episodes"):
        if getattr(data, key) is not None:
            message = f"`data.{key}` must be set for each source"
            help = f"write `{key}` below {_listed(sorted(data.sources))}"
            found.append(
                _finding(document, ("data", key), "E003 unknown-key", message, "of which source?", help)
            )
    return found


def _evaluated_robot(
    document: Document, data: DataSection, evaluation: EvaluationSection | None
) -> list[Diagnostic]:
    """Return a finding if `evaluation` names no robot, another one, or one too much."""
    if evaluation is None:
        return []
    place: KeyPath = ("evaluation", "embodiment")
    if data.sources is None:
        if evaluation.embodiment is None:
            return []
        help = "remove it, or name the robots under `data.sources`"
        message = "`evaluation.embodiment` chooses among several robots, but the data has one"
        return [_finding(document, place, "E007 invalid-value", message, "nothing to choose", help)]
    if evaluation.embodiment in data.robots:
        return []
    if evaluation.embodiment is None:
        help = f"add `embodiment`, one of {_listed(data.robots)}"
        message = "`evaluation` needs the key `embodiment`: the policy is for several robots"
        label = "`embodiment` is missing"
        return [_finding(document, ("evaluation",), "E004 missing-key", message, label, help)]
    label = did_you_mean(evaluation.embodiment, data.robots, "no such robot")
    message = f"no robot is called `{evaluation.embodiment}`"
    help = f"`data.sources` names {_listed(data.robots)}"
    return [_finding(document, place, "E025 unknown-embodiment", message, label, help)]


def _unknown_metrics(document: Document, recipe: Recipe) -> list[Diagnostic]:
    """Return findings where training follows a value that the run never has."""
    training, found = recipe.training, []
    early = training.early_stop
    used: list[tuple[str, KeyPath]] = []
    if training.keep_best is not None:
        used.append((training.keep_best, ("training", "keep_best")))
    if early is not None:
        used.append((early.metric, ("training", "early_stop")))
    for metric, place in used:
        if metric == "validation/loss" and recipe.data.validation == 0.0:
            missing, help = "no episode is held out", "set `data.validation`, such as 0.1"
        elif metric == "evaluation/success" and (
            recipe.evaluation is None or recipe.evaluation.every is None
        ):
            missing, help = "nothing is evaluated during training", "set `evaluation.every`, such as 1000"
        else:
            continue
        message = f"`{'.'.join(map(str, place))}` follows `{metric}`, but {missing}"
        found.append(_finding(document, place, "E007 invalid-value", message, "never has a value", help))
    return found


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def past_actions(loaded: LoadedRecipe) -> list[Diagnostic]:
    """Return a finding if all actions of a chunk lie in the past."""
    section = loaded.sections.data
    if section.past_actions < section.horizon:
        return []
    error = SpecError(
        f"of a chunk of {section.horizon} actions, {section.past_actions} lie in the past",
        label="leaves none to run",
        help=f"lower `past_actions` to {section.horizon - 1} or less, or raise `data.horizon`",
    )
    return [loaded.diagnostic(("data", "past_actions"), error, code="E023 bad-dataset")]


def chunk_use(loaded: LoadedRecipe, steps: TimeSteps) -> list[Diagnostic]:
    """Return findings on how chunks are run.

    A chunk is shorter than `execute`, `ensemble` has nothing to average, or the first actions of a chunk, which
    `delay` gives, lie in the past.
    """
    policy, horizon, past = loaded.sections.policy, len(steps.actions), steps.past_actions
    found = []
    if policy.execute is not None and policy.execute > horizon - past:
        lost = f", of which {past} lie{'s' if past == 1 else ''} in the past" if past else ""
        error = SpecError(
            f"cannot execute {policy.execute} actions of a chunk of {horizon}{lost}",
            label=f"a chunk has {horizon - past}",
            help="lower `policy.execute` or raise `data.horizon`",
        )
        given = "horizon" in loaded.sections.data.model_fields_set
        related = [(("data", "horizon"), f"{horizon} actions")] if given else []
        found.append(
            loaded.diagnostic(("policy", "execute"), error, code="E021 dim-mismatch", related=related)
        )
    if policy.ensemble is not None and policy.execute != 1:
        executed = f"executes {policy.execute}" if policy.execute is not None else "executes whole chunks"
        error = SpecError(
            f"temporal ensembling needs a prediction at every step, but the policy {executed}",
            label="predictions do not overlap",
            help="set `policy.execute: 1`",
        )
        related = [] if policy.execute is None else [(("policy", "execute"), f"{policy.execute} actions")]
        found.append(loaded.diagnostic(("policy", "ensemble"), error, related=related))
    if past and getattr(loaded.head and loaded.head[1], "delay", None) is not None:
        error = SpecError(
            f"`delay` gives the first actions of a chunk, of which {past} lie{'s' if past == 1 else ''} in the past",
            label="begins in the past",
            help="set `data.past_actions: 0`, or leave `delay` out",
        )
        related = [(("data", "past_actions"), f"{past} in the past")]
        found.append(loaded.diagnostic(("policy", "head", "delay"), error, related=related))
    return found


def declared_steps(loaded: LoadedRecipe, steps: TimeSteps, owner: str) -> list[Diagnostic]:
    """Return findings where `data` contradicts the time steps of a hand-written policy's config."""
    data = loaded.sections.data
    declared = {
        "horizon": len(steps.actions),
        "observation_steps": len(steps.observations),
        "past_actions": steps.past_actions,
    }
    found = []
    for key, value in declared.items():
        if key in data.model_fields_set and getattr(data, key) != value:
            error = SpecError(
                f"`data.{key}` is {getattr(data, key)}, but the policy's config needs {value}",
                label=f"the policy needs {value}",
                help=f"remove `{key}`: `transform()` of a hand-written policy decides it",
            )
            related = [(("policy", "type"), f"{owner}.transform() returns {value}")]
            found.append(loaded.diagnostic(("data", key), error, code="E021 dim-mismatch", related=related))
    return found


def batch_size(loaded: LoadedRecipe, samples: int, training: int, episodes: int) -> list[Diagnostic]:
    """Return a finding if a step takes more than all samples, the frames of `training` of all `episodes`."""
    batch, accumulate = loaded.sections.training.batch_size, loaded.sections.training.accumulate
    if batch * accumulate <= samples:
        return []
    times = f", {accumulate} times," if accumulate > 1 else ""
    field, fitting = (
        ("batch_size", max(1, samples // accumulate)) if batch > samples else ("accumulate", samples // batch)
    )
    error = SpecError(
        f"a batch of {batch} samples{times} is more than the {samples} of the training episodes",
        label=f"{samples} frames in {training} of {episodes} episodes",
        help=f"set `training.{field}` to {fitting} or less, or train on more episodes",
    )
    return [loaded.diagnostic(("training", field), error, code="E023 bad-dataset")]


__all__ = [
    "batch_size",
    "chunk_use",
    "contradictions",
    "declared_steps",
    "past_actions",
]
