"""Checks of a part's class at its definition, so that the traceback leads to the class."""

from __future__ import annotations

import inspect
import sys
import typing

from ..schemas.errors import RegistryError
from ..schemas.part import PartConfig


def declared_type(part: type) -> str | None:
    """Return the name that a part's `Config` declares by `type: Literal["<name>"]`, or None."""
    config = getattr(part, "Config", PartConfig)
    names = typing.get_args(config.model_fields["type"].annotation)
    return names[0] if len(names) == 1 and isinstance(names[0], str) else None


def class_location(part: type) -> str:
    """Return the file and the name of a class, which stay the same if its file is imported again."""
    file = getattr(sys.modules.get(part.__module__), "__file__", None)
    return f"{file or part.__module__}:{part.__qualname__}"


def check_contract(part: type, required: typing.Iterable[str]) -> None:
    """Check a subclass of `Part`, unless it is a base class for parts, and document its `Config`.

    Raises:
        RegistryError: The `Config` lacks its base class or its `type`, or the class lacks a method or
            attribute of its kind.
    """
    config = part.__dict__.get("Config", getattr(part, "Config", None))
    if not (inspect.isclass(config) and issubclass(config, PartConfig)):
        raise RegistryError(f"{class_location(part)}: its Config must be a subclass of PartConfig")
    missing = [*_abstract_methods(part), *(name for name in required if not hasattr(part, name))]
    name, field = declared_type(part), config.model_fields["type"]
    if missing and name is None:
        return
    for base in part.__mro__[1:]:
        wanted = base.__dict__.get("Config")
        if wanted is not None and not issubclass(config, wanted):
            raise RegistryError(f"{class_location(part)}: its Config must be a subclass of {wanted.__name__}")
    if name is None or not field.is_required():
        raise RegistryError(
            f'{class_location(part)}: its Config must declare `type: Literal["<name>"]`, without a default'
        )
    if missing:
        raise RegistryError(f"{class_location(part)} lacks {', '.join(f'`{name}`' for name in missing)}")
    if "Config" in part.__dict__:
        _document(config, part.__doc__)


def _abstract_methods(part: type) -> list[str]:
    """Return the abstract methods that a class under construction leaves open."""
    names = {name for base in part.__bases__ for name in getattr(base, "__abstractmethods__", ())}
    names |= part.__dict__.keys()
    return sorted(name for name in names if getattr(getattr(part, name), "__isabstractmethod__", False))


def _document(config: type[PartConfig], text: str | None) -> None:
    """Describe a config and its `type` by the first paragraph of the part's docstring, by default."""
    summary = " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split())
    field = config.model_fields["type"]
    if summary and not config.__doc__:
        config.__doc__ = summary
    if summary and not field.description:
        field.description = summary
        config.model_rebuild(force=True)
