"""Config and policy classes named after a recipe, registered with `AutoConfig` and `AutoModel`.

They only add a name and defaults to `RecipeConfig` and `RecipePolicy`; checkpoints carry the static pair. The
classes pickle by their content, so that instances reach spawned processes that never saw the recipe.

A sweep builds many architectures under one name: the latest takes the name, and each keeps its classes.
"""

from __future__ import annotations

import copy
import copyreg
import json
import logging
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ....schemas.specs import Spec
from ... import compat
from ..base import PolicyMeta
from ..recipe_config import MODEL_TYPE, RecipeConfig
from ..recipe_policy import RecipePolicy
from .registry import name_conflict, register_pair

log = logging.getLogger(__name__)
Classes = tuple[type[RecipeConfig], type[RecipePolicy]]

_CLASSES: dict[tuple[str, str], Classes] = {}
"""Classes by name and architecture."""


class NamedConfigMeta(type(RecipeConfig)):  # type: ignore[misc]
    """Metaclass of the config classes."""


class NamedPolicyMeta(PolicyMeta):
    """Metaclass of the policy classes."""


def named_classes(content: dict[str, Any]) -> Classes:
    """Return the classes for a recipe's content (the fields of `RecipeConfig`), registered under its name.

    Recipes of one name and one architecture share them, whatever their data and training;
    `AutoConfig.for_model(name)` returns the latest content. Another architecture takes the name over, which
    is logged.

    Raises:
        RegistryError: The name belongs to something other than a recipe.
    """
    name = content["recipe"]["name"]
    former = _registered(name)
    found = _classes_of(content)
    register_pair(name, *found)
    if former is not None and former is not found[0]:
        before, now = _architecture(former._content), _architecture(content)
        log.warning(
            "`%s` named a recipe with another %s; AutoConfig and AutoModel return the latest from now on, and "
            "earlier policies keep their classes",
            name,
            " and ".join(part for part in now if before[part] != now[part]),
        )
    found[0]._content = copy.deepcopy(content)  # type: ignore[attr-defined]
    return found


def recipe_name_conflict(name: str) -> str | None:
    """Return the reason why no recipe can have a name, or None."""
    return name_conflict(name, _registered(name))


def _registered(name: str) -> Any:
    """Return the config class of a recipe that `AutoConfig` knows under a name, or None."""
    present = compat.registered_config(name)
    return present if isinstance(present, NamedConfigMeta) else None


def _architecture(content: dict[str, Any]) -> dict[str, Any]:
    """Return the values that policies of one class have in common."""
    recipe = content["recipe"]
    return {
        "policy.backbones": recipe["policy"]["backbones"],
        "policy.head": recipe["policy"]["head"],
        "transforms": recipe["transforms"],
        "collator": recipe["collator"],
        "data": {key: str(Spec.from_json(spec)) for key, spec in content["specs"].items()},
        "weights and tokenizers": content["facts"],
    }


def _classes_of(content: dict[str, Any]) -> Classes:
    key = content["recipe"]["name"], json.dumps(_architecture(content), sort_keys=True)
    if key not in _CLASSES:
        _CLASSES[key] = config, _ = _classes(key[0])
        config._content = copy.deepcopy(content)  # type: ignore[attr-defined]
    return _CLASSES[key]


def _classes(name: str) -> tuple[type[RecipeConfig], type[RecipePolicy]]:
    title = "".join(word.capitalize() for word in name.split("_"))

    def fill(self: RecipeConfig, **values: Any) -> None:
        RecipeConfig.__init__(self, **{**copy.deepcopy(type(self)._content), **values})  # type: ignore[attr-defined]

    def read(cls: Any, source: Any, /, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        values, unused = super(config, cls).get_config_dict(source, **options)
        return {**values, "model_type": name} if values.get("model_type") == MODEL_TYPE else values, unused

    config: Any = NamedConfigMeta(
        f"Policysmith{title}Config",
        (RecipeConfig,),
        {
            "model_type": name,
            "__init__": fill,
            "get_config_dict": classmethod(read),
            "__module__": __name__,
            "__doc__": f"Config of the recipe `{name}`, filled in.",
            "_content": {},
        },
    )
    policy: Any = NamedPolicyMeta(
        f"Policysmith{title}Policy",
        (RecipePolicy,),
        {"config_class": config, "__module__": __name__, "__doc__": f"Policy of the recipe `{name}`."},
    )
    return config, policy


def _unpickled(content: dict[str, Any]) -> Classes:
    """Return the classes of a pickled object. They take their name only if it is free."""
    name = content["recipe"]["name"]
    return named_classes(content) if name not in CONFIG_MAPPING else _classes_of(content)


def _config_class(content: dict[str, Any]) -> type[RecipeConfig]:
    return _unpickled(content)[0]


def _policy_class(content: dict[str, Any]) -> type[RecipePolicy]:
    return _unpickled(content)[1]


def _reduce_config(cls: Any) -> tuple[Any, ...]:
    return _config_class, (cls._content,)


def _reduce_policy(cls: Any) -> tuple[Any, ...]:
    return _policy_class, (cls.config_class._content,)


copyreg.pickle(NamedConfigMeta, _reduce_config)
copyreg.pickle(NamedPolicyMeta, _reduce_policy)
