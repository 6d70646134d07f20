"""Options of the config of a hand-written policy, read from its class."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from typing import Any

from transformers import PretrainedConfig


def options(config: type[PretrainedConfig]) -> dict[str, Any]:
    """Return the options of a config class with their defaults.

    Options are its fields, its class attributes, and the arguments of its `__init__`.
    The default of an option without one is `inspect.Parameter.empty`.
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
    """Copy class-level options onto the instance, so that `config.json` holds them."""
    for name, value in options(type(config)).items():
        if name not in vars(config) and hasattr(type(config), name):
            setattr(config, name, copy.deepcopy(value))


def _is_method(value: Any) -> bool:
    return callable(value) or isinstance(value, property | classmethod | staticmethod)


__all__ = ["options", "pin_class_attributes"]
