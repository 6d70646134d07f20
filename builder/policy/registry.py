"""Hand-written policies and their collators, by name, and the guard that keeps names from being taken twice.

transformers lets a second registration replace the first in silence; here the second is an error naming both.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from transformers import AutoConfig, AutoModel, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ...schemas.errors import RegistryError

if TYPE_CHECKING:
    from .base import BasePolicyModel

log = logging.getLogger(__name__)
Collate = Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]]
F = TypeVar("F", bound=Callable[..., Any])

_POLICIES: dict[str, type[BasePolicyModel]] = {}


def policies() -> dict[str, type[BasePolicyModel]]:
    """Registered hand-written policies, by name."""
    return dict(sorted(_POLICIES.items()))


def model_of(config: PretrainedConfig) -> type[BasePolicyModel]:
    """The hand-written policy that a config belongs to, even where both were defined again since."""
    models: Any = AutoModel._model_mapping
    model: type[BasePolicyModel] = models[type(config)]
    return model


def register_policy(name: str, policy: type[BasePolicyModel]) -> None:
    """Make a hand-written policy known here and to `AutoConfig` and `AutoModel`. Raises RegistryError."""
    from .base import BasePolicyModel

    if not (inspect.isclass(policy) and issubclass(policy, BasePolicyModel)):
        raise RegistryError(
            f"{owner(policy)} is no BasePolicyModel; derive it from `policysmith.builder.BasePolicyModel`"
        )
    config = getattr(policy, "config_class", None)
    if not (inspect.isclass(config) and issubclass(config, PretrainedConfig)):
        raise RegistryError(f"{owner(policy)}: set `config_class` to its PretrainedConfig subclass")
    if getattr(config, "model_type", "") != name:
        raise RegistryError(
            f"{owner(policy)} registers as `{name}`, but {config.__name__}.model_type is `{config.model_type}`; "
            "the two must be the same"
        )
    if not callable(getattr(config, "transform", None)):
        raise RegistryError(
            f"{owner(config)} must implement `transform()` -> (transforms, observation indices, action indices)"
        )
    if name == "composed":
        raise RegistryError("`composed` is the name of policies made of parts; choose another")
    claim(name, policy, _POLICIES)
    register_pair(name, config, policy)


def register_pair(name: str, config: type[PretrainedConfig], model: type[BasePolicyModel]) -> None:
    """Register with the Auto classes, unless the name belongs to somebody else. Raises RegistryError."""
    if reason := obstacle(name, config):
        raise RegistryError(reason)
    try:
        AutoConfig.register(name, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
    except ValueError as error:
        raise RegistryError(
            f"`{name}` cannot be registered with transformers: {error}; choose another name"
        ) from error


def obstacle(name: str, config: type[PretrainedConfig] | None) -> str | None:
    """Why a config class, or a new one, cannot have a name with `AutoConfig`. The same class defined again may."""
    if name in CONFIG_MAPPING._mapping:
        return (
            f"`{name}` is a model type of transformers itself; choose another name, such as `{name}_policy`"
        )
    present = CONFIG_MAPPING._extra_content.get(name)
    if present is not None and (config is None or not same(present, config)):
        return f"`AutoConfig` knows `{name}` as {owner(present)}; choose another name"
    return None


def claim(name: str, thing: Any, table: dict[str, Any]) -> None:
    """Enter a thing under a name. Defining the same thing again replaces it; another one raises RegistryError."""
    present = table.get(name)
    if present is not None and present is not thing:
        if not same(present, thing):
            raise RegistryError(f"`{name}` is registered twice: by {owner(present)} and by {owner(thing)}")
        log.warning("%s is defined again; the new definition replaces the old one", owner(thing))
    table[name] = thing


def owner(thing: Any) -> str:
    """Module and name, for messages."""
    return f"{thing.__module__}.{_name(thing)}"


def same(one: Any, other: Any) -> bool:
    """Whether two things are one definition, run again in a notebook, or imported from one file by two names."""
    if _name(one) != _name(other):
        return False
    first, second = _file(one), _file(other)
    return first == second if first and second else one.__module__ == other.__module__


def _name(thing: Any) -> str:
    return getattr(thing, "__qualname__", type(thing).__qualname__)


def _file(thing: Any) -> Path | None:
    path = getattr(sys.modules.get(thing.__module__), "__file__", None)
    return Path(path).resolve() if path is not None else None


class DataCollatorRegistry:
    """Collators of hand-written policies, by the policy's name."""

    _collators: ClassVar[dict[str, Collate]] = {}

    @classmethod
    def register(cls, name: str) -> Callable[[F], F]:
        """Decorator for a function from a list of samples to a batch; gives the function back unchanged."""

        def decorate(function: F) -> F:
            claim(name, function, cls._collators)
            return function

        return decorate

    @classmethod
    def get(cls, name: str) -> Collate:
        """The collator of a policy. Raises RegistryError with what is registered."""
        if name not in cls._collators:
            known = ", ".join(sorted(cls._collators)) or "none"
            raise RegistryError(
                f"no collator is registered for `{name}` (registered: {known}); decorate a function from a list of "
                f'samples to a batch with `@DataCollatorRegistry.register("{name}")`'
            )
        return cls._collators[name]


def options(config: type[PretrainedConfig]) -> dict[str, Any]:
    """Hyper-parameters of a hand-written config with their defaults: fields, class attributes, arguments of `__init__`.

    A hyper-parameter without a default has `inspect.Parameter.empty`.
    """
    found: dict[str, Any] = {}
    inherited = {f.name for f in dataclasses.fields(PretrainedConfig)} | set(dir(PretrainedConfig))
    for klass in reversed(config.__mro__[: config.__mro__.index(PretrainedConfig)]):
        found |= {
            name: value
            for name, value in vars(klass).items()
            if not name.startswith("_") and name not in inherited and not _is_method(value)
        }
        found |= {
            name: inspect.Parameter.empty for name in inspect.get_annotations(klass) if name not in found
        }
        if "__init__" in vars(klass):
            for parameter in inspect.signature(vars(klass)["__init__"]).parameters.values():
                named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
                if named and parameter.name not in {"self"} | inherited:
                    found[parameter.name] = parameter.default
    return {name: value for name, value in found.items() if not name.startswith("_")}


def pin_class_attributes(config: PretrainedConfig) -> None:
    """Copy class-level hyper-parameters onto the instance, so that `config.json` holds them."""
    for name, value in options(type(config)).items():
        if name not in vars(config) and hasattr(type(config), name):
            setattr(config, name, copy.deepcopy(value))


def _is_method(value: Any) -> bool:
    return callable(value) or isinstance(value, property | classmethod | staticmethod)
