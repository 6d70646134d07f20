"""A hand-written policy in a recipe: `policy: {type: custom_model, hidden_dim: 256}`.

Its config class says which options there are and which time steps it wants; the rest of the recipe means what it
always means.
"""

from __future__ import annotations

import copy
import inspect
import traceback
import typing
from typing import Any

import torch
from transformers import PretrainedConfig

from ..schemas.diagnostics import Diagnostic, in_order
from ..schemas.errors import PolicysmithError, RecipeError, SpecError
from ..schemas.recipe import CustomPolicySection
from ..schemas.wording import did_you_mean
from .composed import provenance
from .planning.dry_run import shared, unmatched
from .planning.policy import check_execute, locate, specs_to_json, transform_sites
from .planning.sources import DataPlan, Windows
from .planning.statistics import measure
from .planning.trial import try_out
from .policy import BasePolicyModel
from .policy.registry import DataCollatorRegistry, model_of, obstacle, options, policies
from .policy.sample_pipeline import KEY, way_of_samples
from .recipe.load import LoadedRecipe
from .wiring.parts import WiringError
from .wiring.solve import look_up, remarks, wire_samples, with_statistics


def configure(loaded: LoadedRecipe) -> PretrainedConfig:
    """The policy's config, filled from the recipe.

    Raises RecipeError for an unknown policy, an unknown option, a value of another type than the option's default,
    a policy without a collator, and a `data.horizon` that contradicts the config.
    """
    section = loaded.recipe.policy
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
    config_class = typing.cast(type[PretrainedConfig], known[section.type].config_class)
    if reason := obstacle(section.type, config_class):
        raise RecipeError([loaded.diagnostic(("policy", "type"), reason, code="E006 unknown-type")])
    accepted = options(config_class)
    given = section.model_extra or {}
    problems = [
        p for key, value in given.items() if (p := _judge(loaded, section.type, key, value, accepted))
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
            f"`{section.type}` has a collator of its own", label="would not be used", help="remove `collator`"
        )
        problems.append(loaded.diagnostic(("collator",), error, code="E003 unknown-key"))
    if problems:
        raise RecipeError(in_order(problems))
    try:
        return config_class(**given)
    except Exception as error:
        raise _failed(loaded, f"{config_class.__name__} refuses these options", error) from error


def windows(loaded: LoadedRecipe, config: PretrainedConfig) -> Windows:
    """The time steps the config asks for. Raises RecipeError where they are none, or the recipe says otherwise."""
    try:
        _, observations, actions = way_of_samples(config)
    except SpecError as error:
        raise RecipeError([loaded.diagnostic(("policy", "type"), error)]) from error
    except Exception as error:
        raise _failed(loaded, f"{type(config).__name__}.transform() fails", error) from error
    found = Windows(observations, actions)
    data = loaded.recipe.data
    past = sum(step < 0 for step in actions)
    problems = check_execute(loaded, actions)
    asked = {"horizon": len(actions), "observation_steps": len(observations), "past_actions": past}
    for key, value in asked.items():
        if key in data.model_fields_set and getattr(data, key) != value:
            clash = SpecError(
                f"`data.{key}` is {getattr(data, key)}, but the policy's config asks for {value}",
                label=f"the policy asks for {value}",
                help=f"remove `{key}`: a hand-written policy's `transform()` decides it",
            )
            related = [(("policy", "type"), f"{type(config).__name__}.transform() asks for {value}")]
            problems.append(
                loaded.diagnostic(("data", key), clash, code="E021 dim-mismatch", related=related)
            )
    if problems:
        raise RecipeError(in_order(problems))
    return found


def attach(loaded: LoadedRecipe, config: PretrainedConfig, data: DataPlan) -> PretrainedConfig:
    """The config with all that the policy needs to know of recipe and data. Raises RecipeError for its transforms."""
    facts, _ = _wired(loaded, data)
    recipe = loaded.resolved()
    del recipe["collator"]  # it has its own; as saved, the recipe must load again
    recipe["data"] |= {
        "horizon": len(data.windows.actions),
        "observation_steps": len(data.windows.observations),
        "past_actions": sum(step < 0 for step in data.windows.actions),
    }
    content: dict[str, Any] = {
        "recipe": recipe,
        "specs": specs_to_json(data.specs),
        "facts": facts,
        "statistics": data.statistics,
        "robots": data.robots.to_json(),
        "signals": data.signals,
        "provenance": provenance(loaded),
    }
    setattr(config, KEY, content)
    return config


def warnings(loaded: LoadedRecipe, data: DataPlan) -> list[str]:
    """Return what the recipe's transforms have to say of the data. Raise RecipeError for transforms that do not fit."""
    return _wired(loaded, data)[1]


def _wired(loaded: LoadedRecipe, data: DataPlan) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Facts of the recipe's transforms, and their remarks. Raise RecipeError for those that do not fit."""
    transforms = transform_sites(loaded)
    try:
        facts = look_up(transforms, loaded.directory)
        facts = measure(transforms, data.specs, facts, data.statistics, data.numbers)
        known = with_statistics(facts, transforms, data.statistics)
        stages = wire_samples(transforms, data.specs, known)
    except WiringError as error:
        raise RecipeError(in_order([locate(loaded, problem) for problem in error.problems])) from error
    return facts, remarks(transforms, [stage.specs for stage in stages[:-1]], known)


def assemble(loaded: LoadedRecipe, config: PretrainedConfig, data: DataPlan, device: str) -> BasePolicyModel:
    """The policy with its initial weights, in evaluation mode.

    Raises RecipeError where its constructor fails, its tensors share memory undeclared, or a pattern matches nothing.
    """
    own = attach(loaded, copy.deepcopy(config), data)
    torch.manual_seed(loaded.recipe.training.seed)
    model = model_of(config)
    try:
        with torch.device(device):
            policy: BasePolicyModel = model(own)
    except Exception as error:
        raise _failed(loaded, f"{model.__name__} cannot be built", error) from error
    problems = [*shared(loaded, policy, ("policy", "type")), *unmatched(loaded, policy)]
    if problems:
        raise RecipeError(in_order(problems))
    return policy.eval()


def rehearse(loaded: LoadedRecipe, policy: BasePolicyModel, data: DataPlan) -> None:
    """Run the policy once. Raises RecipeError where it breaks the contract or its own code fails."""
    try:
        try_out(policy, data)
    except SpecError as error:
        raise RecipeError([loaded.diagnostic(("policy", "type"), error)]) from error
    except Exception as error:
        raise _failed(loaded, f"{type(policy).__name__} fails on samples of the data", error) from error


def _failed(loaded: LoadedRecipe, what: str, error: Exception) -> RecipeError:
    """An error of hand-written code, with the line that raised it."""
    raised = traceback.extract_tb(error.__traceback__)[-1]
    message = f"{what}: {type(error).__name__}: {error}"
    notes = [f"raised at {raised.filename}:{raised.lineno}"]
    return RecipeError([loaded.diagnostic(("policy", "type"), message, notes=notes)])


def _judge(
    loaded: LoadedRecipe, policy: str, key: str, value: Any, accepted: dict[str, Any]
) -> Diagnostic | None:
    if key not in accepted:
        error = SpecError(
            f"`{policy}` has no option `{key}`",
            label=did_you_mean(key, accepted, "unknown"),
            help=f"its options are: {', '.join(accepted) or 'none'}",
        )
        return loaded.diagnostic(("policy", key), error, code="E003 unknown-key")
    default = accepted[key]
    if default is None or default is inspect.Parameter.empty or _same_type(value, default):
        return None
    error = SpecError(
        f"`policy.{key}` must be {type(default).__name__}, found {value!r}",
        label=f"the default is {default!r}",
    )
    return loaded.diagnostic(("policy", key), error, code="E005 wrong-type")


def _same_type(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list | tuple):
        return isinstance(value, list)
    return isinstance(value, type(default))
