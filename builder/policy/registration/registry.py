"""Hand-written policies and their collators, by name.

transformers lets a second registration replace the first without a word; here it is an error that names both.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from ....schemas.errors import RegistryError
from ... import compat

log = logging.getLogger(__name__)
Collate = Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]]
F = TypeVar("F", bound=Callable[..., Any])

_POLICIES: dict[str, type[PreTrainedModel]] = {}


def policies() -> dict[str, type[PreTrainedModel]]:
    """Return the registered hand-written policies, by name."""
    return dict(sorted(_POLICIES.items()))


def register_policy(name: str, policy: type[PreTrainedModel]) -> None:
    """Register a hand-written policy here and with `AutoConfig` and `AutoModel`.

    Raises:
        RegistryError: The name is taken, or the class or its config breaks the contract.
    """
    config = getattr(policy, "config_class", None)
    if not (inspect.isclass(config) and issubclass(config, PretrainedConfig)):
        raise RegistryError(f"{owner(policy)}: set `config_class` to its PretrainedConfig subclass")
    if getattr(config, "model_type", "") != name:
        raise RegistryError(
            f"{owner(policy)} registers as `{name}`, but {config.__name__}.model_type is `{config.model_type}`; "
            "give both the same name"
        )
    if not callable(getattr(config, "transform", None)):
        raise RegistryError(
            f"{owner(config)} must implement `transform()` -> (transforms, observation indices, action indices)"
        )
    if name == "composed":
        raise RegistryError("`composed` is the name of policies made of parts; choose another name")
    claim(name, policy, _POLICIES)
    register_pair(name, config, policy)


def register_pair(name: str, config: type[PretrainedConfig], model: type[PreTrainedModel]) -> None:
    """Register a config and its model with the Auto classes. Raise RegistryError if the name is taken."""
    if reason := name_conflict(name, config):
        raise RegistryError(reason)
    try:
        AutoConfig.register(name, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
    except ValueError as error:
        raise RegistryError(
            f"`{name}` cannot be registered with transformers: {error}; choose another name"
        ) from error


def name_conflict(name: str, config: type[PretrainedConfig] | None) -> str | None:
    """Return the reason why a config class cannot take a name with `AutoConfig`, or None.

    `config` is None for a class that does not exist yet. A class that is defined again keeps its name.
    """
    if compat.is_own_model_type(name):
        return (
            f"`{name}` is a model type of transformers itself; choose another name, such as `{name}_policy`"
        )
    present = compat.registered_config(name)
    if present is not None and (config is None or not same_definition(present, config)):
        return f"`AutoConfig` knows `{name}` as {owner(present)}; choose another name"
    return None


def claim(name: str, thing: Any, table: dict[str, Any]) -> None:
    """Enter a thing into a table. Defining it again replaces it; raise RegistryError for another thing."""
    present = table.get(name)
    if present is not None and present is not thing:
        if not same_definition(present, thing):
            raise RegistryError(f"`{name}` is registered twice: by {owner(present)} and by {owner(thing)}")
        log.warning("%s is defined again; the new definition replaces the old one", owner(thing))
    table[name] = thing


def owner(thing: Any) -> str:
    """Return module and name, for messages."""
    return f"{thing.__module__}.{_name(thing)}"


def same_definition(one: Any, other: Any) -> bool:
    """Return whether two things come from one definition, run again or imported by two names."""
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
        """Return a decorator that registers a function from a list of samples to a batch."""

        def decorate(function: F) -> F:
            claim(name, function, cls._collators)
            return function

        return decorate

    @classmethod
    def get(cls, name: str) -> Collate:
        """Return the collator of a policy. Raise RegistryError if there is none."""
        if name not in cls._collators:
            known = ", ".join(sorted(cls._collators)) or "none"
            raise RegistryError(
                f"no collator is registered for `{name}` (registered: {known}); decorate a function from a list of "
                f'samples to a batch with `@DataCollatorRegistry.register("{name}")`'
            )
        return cls._collators[name]
