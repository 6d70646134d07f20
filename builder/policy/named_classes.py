"""A policy's own pair of classes, named after its recipe and known to `AutoConfig` and `AutoModel`.

The pair only adds a name and defaults to `RecipeConfig` and `RecipePolicy`; checkpoints carry the static pair. The
classes pickle by what they are made of, so instances reach spawned processes that never saw the recipe.

A sweep builds many architectures under one name. The latest has the name; each keeps its classes.
"""

from __future__ import annotations

import copy
import copyreg
import json
import logging
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ...schemas.specs import Spec
from .base import PolicyMeta
from .recipe_policy import MODEL_TYPE, RecipeConfig, RecipePolicy
from .registry import obstacle, register_pair

log = logging.getLogger(__name__)
Pair = tuple[type[RecipeConfig], type[RecipePolicy]]

_PAIRS: dict[tuple[str, str], Pair] = {}
"""By name and architecture."""


class ConfigMeta(type(RecipeConfig)):  # type: ignore[misc]
    """Type of the dynamic config classes."""


class DynamicPolicyMeta(PolicyMeta):
    """Type of the dynamic policy classes."""


def pair(content: dict[str, Any]) -> Pair:
    """Classes for a recipe's content (the fields of `RecipeConfig`), registered under its name.

    Recipes of one name and one architecture share them, whatever their data and training; the latest content is
    what `AutoConfig.for_model(name)` gives. Another architecture takes the name over, and that is logged. Raises
    RegistryError where the name belongs to something else than a recipe.
    """
    name = content["recipe"]["name"]
    former = _registered(name)
    found = _pair(content)
    register_pair(name, *found)
    if former is not None and former is not found[0]:
        before, now = _architecture(former._content), _architecture(content)
        log.warning(
            "`%s` stood for a recipe with another %s; AutoConfig and AutoModel give the latest from now on, and "
            "policies built before stay as they are",
            name,
            " and ".join(part for part in now if before[part] != now[part]),
        )
    found[0]._content = copy.deepcopy(content)  # type: ignore[attr-defined]
    return found


def refusal(name: str) -> str | None:
    """Why no recipe can be called so, or None."""
    return obstacle(name, _registered(name))


def _registered(name: str) -> Any:
    """The dynamic config class that has a name with `AutoConfig`."""
    present = CONFIG_MAPPING._extra_content.get(name)
    return present if isinstance(present, ConfigMeta) else None


def _architecture(content: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for two policies to be of one class."""
    recipe = content["recipe"]
    return {
        "policy.backbones": recipe["policy"]["backbones"],
        "policy.head": recipe["policy"]["head"],
        "transforms": recipe["transforms"],
        "collator": recipe["collator"],
        "data": {key: str(Spec.from_json(spec)) for key, spec in content["specs"].items()},
        "weights and tokenizers": content["facts"],
    }


def _pair(content: dict[str, Any]) -> Pair:
    key = content["recipe"]["name"], json.dumps(_architecture(content), sort_keys=True)
    if key not in _PAIRS:
        _PAIRS[key] = config, _ = _classes(key[0])
        config._content = copy.deepcopy(content)  # type: ignore[attr-defined]
    return _PAIRS[key]


def _classes(name: str) -> tuple[type[RecipeConfig], type[RecipePolicy]]:
    title = "".join(word.capitalize() for word in name.split("_"))

    def fill(self: RecipeConfig, **values: Any) -> None:
        RecipeConfig.__init__(self, **{**copy.deepcopy(type(self)._content), **values})  # type: ignore[attr-defined]

    def read(cls: Any, source: Any, /, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        values, rest = super(config, cls).get_config_dict(source, **options)
        return {**values, "model_type": name} if values.get("model_type") == MODEL_TYPE else values, rest

    config: Any = ConfigMeta(
        f"Policysmith{title}Config",
        (RecipeConfig,),
        {
            "model_type": name,
            "__init__": fill,
            "get_config_dict": classmethod(read),
            "__module__": __name__,
            "__doc__": f"The config of recipe `{name}`, filled.",
            "_content": {},
        },
    )
    policy: Any = DynamicPolicyMeta(
        f"Policysmith{title}Policy",
        (RecipePolicy,),
        {"config_class": config, "__module__": __name__, "__doc__": f"The policy of recipe `{name}`."},
    )
    return config, policy


def _unpickled(content: dict[str, Any]) -> Pair:
    """The classes of something that was pickled. They take a name that is free, and no other."""
    name = content["recipe"]["name"]
    return pair(content) if name not in CONFIG_MAPPING else _pair(content)


def _config_class(content: dict[str, Any]) -> type[RecipeConfig]:
    return _unpickled(content)[0]


def _policy_class(content: dict[str, Any]) -> type[RecipePolicy]:
    return _unpickled(content)[1]


def _reduce_config(cls: Any) -> tuple[Any, ...]:
    return _config_class, (cls._content,)


def _reduce_policy(cls: Any) -> tuple[Any, ...]:
    return _policy_class, (cls.config_class._content,)


copyreg.pickle(ConfigMeta, _reduce_config)
copyreg.pickle(DynamicPolicyMeta, _reduce_policy)
