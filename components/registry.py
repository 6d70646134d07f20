"""Parts by name: `components/heads/flow_matching.py` is `type: flow_matching`.

    HEADS.names()                 # lists files and entry points, imports nothing
    HEADS.get("flow_matching")    # imports that one file

A part outside this package comes from an entry point of the group `policysmith.<kind>`, named like its type,
or from an imported file, such as those under `imports:` of a recipe:

    @BACKBONES.register
    class MyBackbone(Backbone): ...        # named by the `type` of its Config
"""

from __future__ import annotations

import importlib
import inspect
import typing
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Generic, TypeVar

from ..schemas.errors import RegistryError
from ..schemas.wording import did_you_mean
from .base import ActionHead, Backbone, Collator, Neck, Network, Part, Transform
from .contract import class_location, declared_type

P = TypeVar("P", bound=Part)
Registered = TypeVar("Registered", bound=type[Part])
_HOME = Path(__file__).parent
_LONGEST = 100  # characters of a name


class Registry(Generic[P]):
    """Parts of one kind."""

    def __init__(self, kind: str, base: type[P]) -> None:
        self.kind, self._base = kind, base
        self._registered: dict[str, tuple[str, type[P]]] = {}

    def register(self, part: Registered) -> Registered:
        """Register a part under the `type` of its Config; a decorator.

        Importing a file again replaces its parts.

        Raises:
            RegistryError: The name is taken, or the class is not a part of this kind.
        """
        owner = class_location(part)
        name = declared_type(part) or "<name>"
        self._check(name, part, owner)
        taken = self._registered[name][0] if name in self._registered else self._provider(name)
        if taken not in (None, owner, f"{part.__module__}:{part.__qualname__}"):
            raise RegistryError(
                f"two parts are called {self.kind} `{name}`: {taken} and {owner}; rename one of them"
            )
        self._registered[name] = (owner, typing.cast(type[P], part))
        return part

    @property
    def shipped(self) -> list[str]:
        """Types of this package."""
        return sorted(path.stem for path in (_HOME / self.kind).glob("[a-z]*.py"))

    @property
    def registered(self) -> list[str]:
        """Types registered in this process, by an imported file or in a notebook."""
        return sorted(self._registered)

    def _provider(self, name: str) -> str | None:
        """Return the plug-in or the file of this package that provides a name, if any."""
        if (plugin := self._plugins().get(name)) is not None:
            return plugin.value
        path = _HOME / self.kind / f"{name}.py"
        return str(path) if path.exists() else None

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
        """Return every known type, sorted."""
        return sorted({*self.shipped, *self._plugins(), *self._registered})

    def get(self, name: str) -> type[P]:
        """Return the class of `type: <name>`; raise RegistryError with known types and the likely one."""
        if name in self._registered:
            return self._registered[name][1]
        if len(name) > _LONGEST or not name.isidentifier():
            raise RegistryError(
                f"no {self.kind} part is called `{name[:_LONGEST]}`; known: {', '.join(self.names())}"
            )
        plugin = self._plugins().get(name)
        if plugin is not None:
            part = plugin.load()
            self._check(name, part, f"entry point {plugin.value} of {_owner(plugin)}")
            return typing.cast(type[P], part)
        if not (_HOME / self.kind / f"{name}.py").exists():
            hint = did_you_mean(name, self.names())
            raise RegistryError(
                f"no {self.kind} part is called `{name}`; known: {', '.join(self.names())}{'; ' * bool(hint)}{hint}"
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
            raise RegistryError(f"{place} is not a subclass of {self._base.__name__}")
        if declared_type(part) != name:
            raise RegistryError(
                f'{place}: its Config must declare `type: Literal["{name}"]`, without a default'
            )


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


BACKBONES = Registry("backbones", Backbone)  # type: ignore[type-abstract]
NECKS = Registry("necks", Neck)  # type: ignore[type-abstract]
HEADS = Registry("heads", ActionHead)  # type: ignore[type-abstract]
NETWORKS = Registry("networks", Network)  # type: ignore[type-abstract]
TRANSFORMS = Registry("transforms", Transform)  # type: ignore[type-abstract]
COLLATORS = Registry("collators", Collator)  # type: ignore[type-abstract]
REGISTRIES: dict[str, Registry[typing.Any]] = {
    r.kind: r for r in (BACKBONES, NECKS, HEADS, NETWORKS, TRANSFORMS, COLLATORS)
}
