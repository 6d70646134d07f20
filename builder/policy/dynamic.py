"""A policy's own pair of classes, named after its recipe and known to `AutoConfig` and `AutoModel`.

The pair only adds a name and defaults to `RecipeConfig` and `RecipePolicy`; checkpoints carry the static pair. The
classes pickle by what they are made of, so instances reach spawned processes that never saw the recipe.
"""

from __future__ import annotations

import copy
import copyreg
import json
from typing import Any

from transformers import AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ...schemas.errors import RegistryError
from ...schemas.specs import Spec
from .base import PolicyMeta
from .composed import MODEL_TYPE, RecipeConfig, RecipePolicy
from .registry import obstacle, register_pair

_PAIRS: dict[str, tuple[str, type[RecipeConfig], type[RecipePolicy]]] = {}


class ConfigMeta(type(RecipeConfig)):  # type: ignore[misc]
    """Type of the dynamic config classes."""


class DynamicPolicyMeta(PolicyMeta):
    """Type of the dynamic policy classes."""


def pair(content: dict[str, Any]) -> tuple[type[RecipeConfig], type[RecipePolicy]]:
    """Classes for a recipe's content (the fields of `RecipeConfig`), registered under its name.

    Recipes of one name and one architecture share them, whatever their data and training; the latest content is
    what `AutoConfig.for_model(name)` gives. Raises RegistryError where the name stands for something else.
    """
    name = content["recipe"]["name"]
    identity = _architecture(content)
    known = _PAIRS.get(name)
    if known is None:
        config, policy = _classes(name)
        register_pair(name, config, policy)
        _PAIRS[name] = known = (identity, config, policy)
    elif reason := obstacle(name, known[1]):
        raise RegistryError(reason)
    if known[0] != identity:
        raise RegistryError(
            f"`{name}` already stands for another recipe in this process; give this one a `name:` of its own, "
            f'or forget the former with `policysmith.builder.forget("{name}")`'
        )
    known[1].content = copy.deepcopy(content)  # type: ignore[attr-defined]
    return known[1], known[2]


def refusal(name: str) -> str | None:
    """Why no recipe can be called so, or None."""
    known = _PAIRS.get(name)
    return obstacle(name, None if known is None else known[1])


def forget(name: str) -> None:
    """Free a recipe's name for another recipe. Policies already built keep working. Raises RegistryError."""
    if name not in _PAIRS:
        raise RegistryError(f"no recipe is registered as `{name}`; registered: {', '.join(_PAIRS) or 'none'}")
    _, config, _ = _PAIRS.pop(name)
    if CONFIG_MAPPING._extra_content.get(name) is config:
        del CONFIG_MAPPING._extra_content[name]
    AutoModel._model_mapping._extra_content.pop(config, None)


def _architecture(content: dict[str, Any]) -> str:
    """What must be the same for two policies to be of one class."""
    recipe = content["recipe"]
    parts = [
        recipe["policy"]["backbones"],
        recipe["policy"]["head"],
        recipe["transforms"],
        recipe["collator"],
    ]
    specs = {key: str(Spec.from_json(spec)) for key, spec in content["specs"].items()}
    return json.dumps([parts, specs, content["facts"]], sort_keys=True)


def _classes(name: str) -> tuple[type[RecipeConfig], type[RecipePolicy]]:
    title = "".join(word.capitalize() for word in name.split("_"))

    def fill(self: RecipeConfig, **values: Any) -> None:
        RecipeConfig.__init__(self, **{**copy.deepcopy(type(self).content), **values})  # type: ignore[attr-defined]

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
            "content": {},
        },
    )
    policy: Any = DynamicPolicyMeta(
        f"Policysmith{title}Policy",
        (RecipePolicy,),
        {"config_class": config, "__module__": __name__, "__doc__": f"The policy of recipe `{name}`."},
    )
    return config, policy


def _config_class(content: dict[str, Any]) -> type[RecipeConfig]:
    return pair(content)[0]


def _policy_class(content: dict[str, Any]) -> type[RecipePolicy]:
    return pair(content)[1]


def _reduce_config(cls: Any) -> tuple[Any, ...]:
    return _config_class, (cls.content,)


def _reduce_policy(cls: Any) -> tuple[Any, ...]:
    return _policy_class, (cls.config_class.content,)


copyreg.pickle(ConfigMeta, _reduce_config)
copyreg.pickle(DynamicPolicyMeta, _reduce_policy)
