"""A hand-written policy in a recipe: `policy: {type: custom_model, hidden_dim: 256}`.

Its config class defines the options and the time steps; the other sections of the recipe mean what they
always mean.
"""

from __future__ import annotations

import copy
import inspect
import traceback
from typing import Any, ClassVar, cast

import torch
from torch.utils.data import Dataset
from transformers import PretrainedConfig

from ..schemas.diagnostics import Diagnostic, in_order
from ..schemas.errors import DatasetError, PolicysmithError, RecipeError, SpecError
from ..schemas.recipe import CustomPolicySection
from ..schemas.wording import did_you_mean
from . import compat
from .data.time_steps import TimeSteps
from .fine_tuning.initialization import Initialization
from .fine_tuning.transfer import Transfer
from .planning.checks.environment import environment_findings
from .planning.checks.real_data import check_finite, ends, first_and_last, open_every_file
from .planning.checks.trackers import tracker_findings
from .planning.checks.trial import try_out
from .planning.dry_run import undeclared_ties, unmatched_patterns
from .planning.policy import config_content, located_problem, transform_sites
from .planning.sources import DataPlan
from .planning.statistics import measure
from .planning.summary import Checked
from .policy import BasePolicyModel
from .policy.registration.config_options import options
from .policy.registration.registry import DataCollatorRegistry, name_conflict, policies
from .policy.sample_pipeline import KEY, SamplePipeline, TransformedDataset, parse_transform
from .recipe import rules
from .recipe.loaded import LoadedRecipe
from .wiring.parts import WiringError
from .wiring.solve import look_up_facts, remarks, wire_samples, with_statistics


class Handwritten:
    """Stages of a hand-written policy. `Composed` has the same methods."""

    keyed: ClassVar[bool] = True
    """Its datasets are indexed by `(index, key)` for training, to draw augmentation by the sample's key."""

    def __init__(self, loaded: LoadedRecipe) -> None:
        self._loaded, self._config = loaded, configure(loaded)
        self._checked: Checked | None = None
        self._tried: BasePolicyModel | None = None

    def time_steps(self) -> TimeSteps:
        """Return the time steps that its config declares.

        Raise RecipeError if the recipe contradicts them.
        """
        loaded, config = self._loaded, self._config
        try:
            _, observations, actions = parse_transform(config)
        except SpecError as error:
            raise RecipeError([loaded.diagnostic(("policy", "type"), error)]) from error
        except Exception as error:
            raise _failed(loaded, f"{type(config).__name__}.transform() fails", error) from error
        steps = TimeSteps(observations, actions)
        found = [*rules.chunk_use(loaded, steps), *rules.declared_steps(loaded, steps, type(config).__name__)]
        if found:
            raise RecipeError(in_order(found))
        return steps

    def check(self, init: Initialization) -> Checked:
        """Build the policy and run it once, on the CPU. Raise RecipeError with every problem."""
        if self._checked is None:
            loaded, config = self._loaded, copy.deepcopy(self._config)
            warnings = self._attach(config, init.data)
            found = [
                *environment_findings(loaded, config.model_type, getattr(config, KEY)),
                *tracker_findings(loaded),
            ]
            if found:
                raise RecipeError(in_order(found))
            policy, transfer = self._assemble(init, "cpu")
            try:
                try_out(policy, init.data)
            except SpecError as error:
                raise RecipeError([loaded.diagnostic(("policy", "type"), error)]) from error
            except Exception as error:
                raise _failed(
                    loaded, f"{type(policy).__name__} fails on samples of the data", error
                ) from error
            self._tried = policy
            self._checked = Checked(report=init.report(transfer), warnings=warnings)
        return self._checked

    def check_deep(self, init: Initialization) -> None:
        """Open every video, and take real samples through the policy. Raise RecipeError for what fails."""
        loaded = self._loaded
        policy = self.build(init, "cpu")
        open_every_file(loaded, init.data)
        samples = ends(init.data)
        dataset = self.dataset(samples, init)
        try:
            batch = policy.collator([dataset[index, index] for index in first_and_last(samples)])
            check_finite(batch, f"{type(policy).__name__} reads")
            with torch.no_grad():
                policy(batch)
        except DatasetError as error:
            raise RecipeError([loaded.diagnostic(("data",), str(error), code="E023 bad-dataset")]) from error
        except SpecError as error:
            raise RecipeError([loaded.diagnostic(("policy", "type"), error)]) from error
        except Exception as error:
            raise _failed(loaded, f"{type(policy).__name__} fails on samples of the data", error) from error

    def build(self, init: Initialization, device: str) -> BasePolicyModel:
        """Return the checked policy with its initial weights, in evaluation mode."""
        self.check(init)
        tried, self._tried = self._tried, None
        if tried is not None and device == "cpu":
            return tried
        return self._assemble(init, device)[0]

    def dataset(self, samples: Dataset[Any], init: Initialization) -> Dataset[Any]:
        """Return the samples that its collator reads: transformed one by one."""
        config = copy.deepcopy(self._config)
        self._attach(config, init.data)
        return TransformedDataset(samples, SamplePipeline(config))

    def _assemble(self, init: Initialization, device: str) -> tuple[BasePolicyModel, Transfer | None]:
        """Return the policy with its initial weights, and what it takes of its base policy.

        Raises:
            RecipeError: Its constructor fails, tensors share memory undeclared, or a pattern matches nothing.
        """
        loaded, config = self._loaded, copy.deepcopy(self._config)
        self._attach(config, init.data)
        torch.manual_seed(loaded.sections.training.seed)
        model = compat.registered_model(type(self._config))
        try:
            with torch.device(device):
                policy: BasePolicyModel = model(config)
        except Exception as error:
            raise _failed(loaded, f"{model.__name__} cannot be built", error) from error
        problems = [
            *undeclared_ties(loaded, policy, ("policy", "type")),
            *unmatched_patterns(loaded, policy),
        ]
        if problems:
            raise RecipeError(in_order(problems))
        policy.eval()
        return policy, init.fill(policy, weights=device != "meta")

    def _attach(self, config: PretrainedConfig, data: DataPlan) -> list[Diagnostic]:
        """Add recipe and data to a config.

        Return the remarks of the recipe's transforms, or raise RecipeError.
        """
        facts, remarks = _wire_transforms(self._loaded, data)
        recipe = self._loaded.resolved()
        del recipe["collator"]  # its own; the recipe must load again as it is saved
        recipe["data"] |= {
            "horizon": len(data.time_steps.actions),
            "observation_steps": len(data.time_steps.observations),
            "past_actions": data.time_steps.past_actions,
        }
        setattr(config, KEY, config_content(self._loaded, data, facts, recipe=recipe))
        return remarks


def configure(loaded: LoadedRecipe) -> PretrainedConfig:
    """Return the policy's config, filled from the recipe.

    Raises:
        RecipeError: The policy or an option is unknown, a value has another type than the option's default,
            or the policy has no collator.
    """
    section = loaded.sections.policy
    assert isinstance(section, CustomPolicySection)
    known = policies()
    if section.type not in known:
        error = SpecError(
            f"no policy is registered as `{section.type}`",
            label=f"known: {', '.join(['composed', *known])}",
            help=did_you_mean(
                section.type,
                ["composed", *known],
                'register it with `@BasePolicyModel.register("...")` in a file named under `imports:`',
            ),
        )
        raise RecipeError([loaded.diagnostic(("policy", "type"), error, code="E006 unknown-type")])
    config_class = cast(type[PretrainedConfig], known[section.type].config_class)
    if reason := name_conflict(section.type, config_class):
        raise RecipeError([loaded.diagnostic(("policy", "type"), reason, code="E006 unknown-type")])
    accepted = options(config_class)
    given = section.model_extra or {}
    problems = [
        p for key, value in given.items() if (p := _judge_option(loaded, section.type, key, value, accepted))
    ]
    missing = [k for k, default in accepted.items() if default is inspect.Parameter.empty and k not in given]
    if missing:
        error = SpecError(f"`{section.type}` needs {', '.join(f'`{key}`' for key in missing)}")
        problems.append(loaded.diagnostic(("policy",), error, code="E004 missing-key"))
    try:
        DataCollatorRegistry.get(section.type)
    except PolicysmithError as lookup:
        problems.append(loaded.diagnostic(("policy", "type"), str(lookup), code="E006 unknown-type"))
    if "collator" in loaded.document.value:
        error = SpecError(
            f"`{section.type}` has its own collator", label="would be ignored", help="remove `collator`"
        )
        problems.append(loaded.diagnostic(("collator",), error, code="E003 unknown-key"))
    if problems:
        raise RecipeError(in_order(problems))
    try:
        return config_class(**given)
    except Exception as error:
        raise _failed(loaded, f"{config_class.__name__} refuses these options", error) from error


def _wire_transforms(
    loaded: LoadedRecipe, data: DataPlan
) -> tuple[dict[str, dict[str, Any]], list[Diagnostic]]:
    """Return facts and remarks of the recipe's transforms. Raise RecipeError if they do not fit."""
    transforms = transform_sites(loaded)
    try:
        facts = look_up_facts(transforms, loaded.directory)
        facts = measure(transforms, data.specs, facts, data.statistics, data.numbers)
        known = with_statistics(facts, transforms, data.statistics)
        stages = wire_samples(transforms, data.specs, known)
    except WiringError as error:
        raise RecipeError(
            in_order([located_problem(loaded, problem) for problem in error.problems])
        ) from error
    found = remarks(transforms, [stage.specs for stage in stages[:-1]], known)
    return facts, [loaded.diagnostic(place, text, code="W010 poor-statistics") for place, text in found]


def _failed(loaded: LoadedRecipe, problem: str, error: Exception) -> RecipeError:
    """Return an error of hand-written code as RecipeError, with the line that raised it."""
    raised = traceback.extract_tb(error.__traceback__)[-1]
    message = f"{problem}: {type(error).__name__}: {error}"
    notes = [f"raised at {raised.filename}:{raised.lineno}"]
    return RecipeError([loaded.diagnostic(("policy", "type"), message, notes=notes)])


def _judge_option(
    loaded: LoadedRecipe, policy: str, key: str, value: Any, accepted: dict[str, Any]
) -> Diagnostic | None:
    """Return a finding for an option that the config does not have, or whose default has another type."""
    if key not in accepted:
        error = SpecError(
            f"`{policy}` has no option `{key}`",
            label=did_you_mean(key, accepted, "unknown"),
            help=f"its options are: {', '.join(accepted) or 'none'}",
        )
        return loaded.diagnostic(("policy", key), error, code="E003 unknown-key")
    default = accepted[key]
    if default is None or default is inspect.Parameter.empty or _has_type_of(value, default):
        return None
    error = SpecError(
        f"`policy.{key}` must be {type(default).__name__}, found {value!r}",
        label=f"the default is {default!r}",
    )
    return loaded.diagnostic(("policy", key), error, code="E005 wrong-type")


def _has_type_of(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list | tuple):
        return isinstance(value, list)
    return isinstance(value, type(default))


__all__ = ["Handwritten", "configure"]
