"""Parts by name: `components/heads/flow_matching.py` is `type: flow_matching`.

    HEADS.names()                 # lists files and entry points, imports nothing
    HEADS.get("flow_matching")    # imports that one file

A part outside this package comes by an entry point of the group `policysmith.<kind>`, named like its type.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import typing
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Generic, TypeVar

from ..schemas.errors import RegistryError
from .base import ActionHead, Backbone, Collator, Part, Transform

P = TypeVar("P", bound=Part)
_HOME = Path(__file__).parent


class Registry(Generic[P]):
    """The parts of one kind."""

    def __init__(self, kind: str, base: type[P]) -> None:
        self.kind, self._base = kind, base

    def _plugins(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=f"policysmith.{self.kind}"):
            owner = found.get(point.name)
            if owner is not None or (_HOME / self.kind / f"{point.name}.py").exists():
                first = _owner(owner) if owner is not None else "policysmith"
                raise RegistryError(
                    f"two distributions provide {self.kind} `{point.name}`: {first} and {_owner(point)}; "
                    "uninstall one of them"
                )
            found[point.name] = point
        return found

    def names(self) -> list[str]:
        """Every known type, sorted."""
        own = {path.stem for path in (_HOME / self.kind).glob("[a-z]*.py")}
        return sorted(own | set(self._plugins()))

    def get(self, name: str) -> type[P]:
        """The class behind `type: <name>`; raises RegistryError with what exists and what was probably meant."""
        plugin = self._plugins().get(name)
        if plugin is not None:
            part = plugin.load()
            self._check(name, part, f"entry point {plugin.value} of {_owner(plugin)}")
            return typing.cast(type[P], part)
        if not (_HOME / self.kind / f"{name}.py").exists():
            near = difflib.get_close_matches(name, self.names(), n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise RegistryError(
                f"no {self.kind} part is called `{name}`; known: {', '.join(self.names())}{hint}"
            )
        module = importlib.import_module(f"{__package__}.{self.kind}.{name}")
        parts = [
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, self._base)
            and value.__module__ == module.__name__
        ]
        if len(parts) != 1:
            raise RegistryError(
                f"components/{self.kind}/{name}.py must define exactly one {self._base.__name__}, found {len(parts)}"
            )
        self._check(name, parts[0], f"components/{self.kind}/{name}.py")
        return parts[0]

    def _check(self, name: str, part: object, place: str) -> None:
        if not (inspect.isclass(part) and issubclass(part, self._base)):
            raise RegistryError(f"{place} is no {self._base.__name__}")
        field = part.Config.model_fields["type"]
        if typing.get_args(field.annotation) != (name,) or not field.is_required():
            raise RegistryError(
                f'{place}: its Config must declare `type: Literal["{name}"]`, without a default'
            )


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


BACKBONES = Registry("backbones", Backbone)  # type: ignore[type-abstract]
HEADS = Registry("heads", ActionHead)  # type: ignore[type-abstract]
TRANSFORMS = Registry("transforms", Transform)  # type: ignore[type-abstract]
COLLATORS = Registry("collators", Collator)  # type: ignore[type-abstract]
REGISTRIES: dict[str, Registry[typing.Any]] = {r.kind: r for r in (BACKBONES, HEADS, TRANSFORMS, COLLATORS)}
