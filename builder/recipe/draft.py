"""Draft of a recipe for a dataset: a ready-made recipe, adapted to cameras, sizes and episodes.

draft = Draft.of(Path("datasets/mine"), policy="act")
draft.text(Path("mine.yaml"))                    # commented YAML
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from ...schemas.composition import composed, resolved
from ...schemas.errors import RegistryError
from ...schemas.formatting import formatted
from ...schemas.json_schema import SCHEMA_FILE
from ...schemas.paths import expanded
from ...schemas.questions.defaults import without_defaults
from ...schemas.specs import IMAGES
from ...schemas.wording import did_you_mean
from ...schemas.yaml.document import read
from ..data.lerobot.features import STATE
from ..data.lerobot.info import DatasetInfo, inspect
from ..located_policy import find_policy
from ..saved_policy import SavedPolicy
from .standalone import with_absolute_paths

RECIPES = Path(__file__).parents[2] / "recipes"
_ONE_TASK = ((8, "act"), (0, "vit_mlp"))
_TASKS = ((40, "pi05"), (16, "smolvla"), (8, "dit_flow"), (0, "tiny/bc_transformer"))
"""Policies to propose, by the least memory in GiB."""
_SIDE = 96  # pixels of the images that recipes without a resizing transform are written for
_FEW = 20  # episodes, of which none is held out
_LINE = 100  # characters of a mapping in one line
_SHOWN = 3  # tasks in the header


def proposed(info: DatasetInfo, gibibytes: float | None) -> str:
    """Return the name of a policy for a dataset and the memory of a GPU; None for no GPU."""
    table = _TASKS if len(info.tasks) > 1 else _ONE_TASK
    return next(name for least, name in table if (gibibytes or 0.0) >= least)


def ready_made() -> dict[str, Path]:
    """Return the ready-made recipes by name, such as `act` or `tiny/act`."""
    files = [*sorted(RECIPES.glob("*.yaml")), *sorted((RECIPES / "tiny").glob("*.yaml"))]
    return {path.relative_to(RECIPES).with_suffix("").as_posix(): path for path in files}


@dataclass(frozen=True)
class Draft:
    """A dataset and the recipe to adapt to it, or the trained policy to fine-tune on it."""

    data: Path
    info: DatasetInfo
    base: Path
    robot: str = ""
    trained: SavedPolicy | None = None
    hub: bool = False
    """True for a trained policy on the hub."""

    @classmethod
    def of(cls, data: Path, *, policy: str | None, base: str | Path | None, gibibytes: float | None) -> Draft:
        """Return the draft for a dataset.

        Args:
            data: Directory of a LeRobot dataset.
            policy: Name of a ready-made recipe; by default one is proposed.
            base: Recipe to adapt instead; or the policy to start from: a run, a checkpoint, or `owner/name` on
                the hub.
            gibibytes: Memory of the GPU, or None without one.

        Raises:
            DatasetError: The dataset cannot be read.
            RegistryError: No recipe has this name.
            CheckpointError: `base` is neither a recipe nor a trained policy.
        """
        data = expanded(data)
        info = inspect(data)
        if base is None:
            known, name = ready_made(), policy or proposed(info, gibibytes)
            if name not in known:
                hint = did_you_mean(name, known, f"known: {', '.join(known)}")
                raise RegistryError(f"there is no recipe `{name}`; {hint}")
            base = known[name]
        path = expanded(base)
        if path.is_file() or path.suffix in (".yaml", ".yml", ".json"):
            return cls(data, info, path, _robot(data))
        trained, hub = find_policy(str(base), Path())
        return cls(data, info, path, _robot(data), trained, hub)

    @property
    def name(self) -> str:
        """Name of the policy."""
        text = f"{self._adapted()['name']}_{self.data.resolve().name}"
        return re.sub(r"[^a-z0-9_]+", "_", text.lower()).strip("_")[:64]

    @property
    def cameras(self) -> dict[str, str | None]:
        """The dataset's camera for each of the trained policy's, by similar names; empty if all have the same names."""
        if self.trained is None:
            return {}
        known = [key.removeprefix(IMAGES) for key in self.trained.specs if key.startswith(IMAGES)]
        if not self.info.cameras or set(known) == set(self.info.cameras):
            return {}
        return _matched(known, list(self.info.cameras))

    @property
    def notes(self) -> list[str]:
        """Proposals that the user has to look at."""
        if not (cameras := self.cameras):
            return []
        pairs = ", ".join(f"{base} {f'is {own}' if own else 'left out'}" for base, own in cameras.items())
        unread = [name for name in self.info.cameras if name not in cameras.values()]
        rest = f"; not read: {', '.join(unread)}" if unread else ""
        return [f"cameras proposed by name: {pairs}{rest}; check `policy.init.cameras`"]

    @property
    def title(self) -> str:
        """The policy and its data, in a line."""
        robot, frames = self.robot or "a robot", sum(self.info.episode_lengths)
        return (
            f"{self.base.stem} on {len(self.info.episodes)} episodes of {robot}, {frames:,} frames at "
            f"{self.info.fps:g} per second"
        )

    def recipe(self, file: Path) -> dict[str, Any]:
        """Return the recipe for `file`, as plain values."""
        recipe = self._adapted()
        for key in ("base", "evaluation", "output", "meta"):
            recipe.pop(key, None)
        lengths = self.info.episode_lengths
        recipe["name"] = self.name
        recipe["data"] = self._data(recipe["data"], file)
        policy = recipe["policy"]
        policy.pop("init", None)
        if self.trained is not None:
            given = self.base.as_posix() if self.hub else _path_beside(file, self.base)
            policy["init"] = {"from": given, "cameras": self.cameras} if self.cameras else given
            _without_cameras(recipe, [base for base, own in self.cameras.items() if own is None])
        if policy.get("execute") is not None:
            past = recipe["data"].get("past_actions", 0)
            policy["execute"] = max(1, min(policy["execute"], recipe["data"]["horizon"] - past))
        if not self.info.state_dim:
            _without_state(recipe)
        recipe["transforms"] = self._transforms(recipe.get("transforms", []))
        training = recipe["training"]
        training["batch_size"] = min(training.get("batch_size", 32), max(1, sum(lengths) // 2))
        return recipe

    def text(self, file: Path) -> str:
        """Return the recipe for `file` as YAML, with a header about the data and comments."""
        stream, yaml = io.StringIO(), YAML()
        yaml.width = 4096
        yaml.indent(mapping=2, sequence=4, offset=2)
        yaml.dump(_styled(self.recipe(file)), stream)
        body = formatted(stream.getvalue())
        for pattern, comment in self._comments():
            body = re.sub(f"({pattern})", rf"\1  # {comment}", body, count=1, flags=re.MULTILINE)
        return "\n".join([*self._header(file), body])

    def _adapted(self) -> dict[str, Any]:
        """Return the recipe to adapt, as values of its own."""
        if self.trained is not None:
            return without_defaults(with_absolute_paths(self.trained.recipe, self.trained.recipe_directory))
        document = resolved(composed(read(self.base)))
        return with_absolute_paths(document.value, document.directory)

    def _data(self, section: Mapping[str, Any], file: Path) -> dict[str, Any]:
        lengths = self.info.episode_lengths
        kept = {
            key: value
            for key, value in section.items()
            if key not in ("path", "sources", "cameras", "columns", "episodes")
        }
        kept["horizon"] = _shortened(kept.get("horizon", 16), max(lengths))
        if kept.get("past_actions", 0) >= kept["horizon"]:
            kept["past_actions"] = kept["horizon"] - 1
        found: dict[str, Any] = {"path": _path_beside(file, self.data)}
        if self.info.unreadable and self.info.cameras and not self.cameras:
            found["cameras"] = list(self.info.cameras)
        kept.setdefault("validation", 0.1 if len(lengths) >= _FEW else 0.0)
        return found | kept

    def _transforms(self, transforms: list[dict[str, Any]]) -> list[dict[str, Any]]:
        sizes = {"action": self.info.action_dim, **self.info.vectors}
        for transform in transforms:
            if transform.get("type") == "pad_dims":
                transform["sizes"] = {
                    key: size if size >= sizes[key] else 8 * math.ceil(sizes[key] / 8)
                    for key, size in transform["sizes"].items()
                    if sizes.get(key)
                }
        transforms = [each for each in transforms if "corner" not in each]  # a region of one camera
        sized = (str(each["type"]) for each in transforms if str(each["type"]).startswith(("resize", "crop")))
        resized = next(sized, "").startswith("resize")
        if not resized and any(size != (_SIDE, _SIDE) for size in self.info.cameras.values()):
            return [{"type": "resize", "size": _SIDE}, *transforms]
        return transforms

    def _header(self, file: Path) -> Iterator[str]:
        info, shown = self.info, self.info.tasks[:_SHOWN]
        yield f"# yaml-language-server: $schema={SCHEMA_FILE.as_posix()}"
        yield f"# {self.title}."
        yield "#"
        yield from (f"#   camera {name}: {h} x {w} (height x width)" for name, (h, w) in info.cameras.items())
        yield f"#   state:  {', '.join(info.state_names) or info.state_dim or 'none'}"
        yield f"#   action: {', '.join(info.action_names) or info.action_dim}"
        yield from (f"#   task:   {' '.join(task.split())}" for task in shown)
        if len(info.tasks) > len(shown):
            yield f"#   and {len(info.tasks) - len(shown)} more tasks"
        yield "#"
        yield f"#   policysmith check {file.name}"
        yield f"#   policysmith train {file.name}"

    def _comments(self) -> Iterator[tuple[str, str]]:
        fps = self.info.fps
        horizon = self.recipe(Path("recipe.yaml"))["data"]["horizon"]
        yield r"^  horizon: .*$", f"actions of a chunk: {horizon / fps:.2g} s"
        yield r"^  execute: .*$", "actions run before the next prediction"
        yield r"^  validation: .*$", "fraction of the episodes that is held out"
        yield r"^    cameras: .*$", "the policy's: the dataset's, proposed by name; null leaves one out"
        yield r"^  steps: .*$", f"the data has {sum(self.info.episode_lengths):,} frames"


def _styled(value: Any) -> Any:
    """Return a value whose innermost mappings and lists are written in a line each if they are short."""
    if isinstance(value, dict):
        mapping = CommentedMap({key: _styled(item) for key, item in value.items()})
        if isinstance(mapping.get("cameras"), CommentedMap):
            mapping["cameras"].fa.set_flow_style()
        if value.keys() & {"type", "lr"} or not value:
            mapping = CommentedMap(sorted(mapping.items(), key=lambda pair: pair[0] != "type"))
            if len(str(value)) < _LINE:
                mapping.fa.set_flow_style()
        return mapping
    if isinstance(value, list):
        sequence = CommentedSeq(map(_styled, value))
        if not any(isinstance(item, dict) for item in value):
            sequence.fa.set_flow_style()
        return sequence
    return value


def _matched(known: Sequence[str], own: Sequence[str]) -> dict[str, str | None]:
    """Return one of `own` for each of `known`: the same or the most similar names first, None once all are given."""
    pairs = sorted(
        ((name != other, -SequenceMatcher(None, name, other).ratio(), i, j), name, other)
        for i, name in enumerate(known)
        for j, other in enumerate(own)
    )
    found: dict[str, str | None] = {}
    for _, name, other in pairs:
        if name not in found and other not in found.values():
            found[name] = other
    return {name: found.get(name) for name in known}


def _shortened(horizon: int, longest: int) -> int:
    """Return a horizon of at most `longest`; if it has to shrink, one that networks can halve if possible."""
    if horizon <= longest:
        return horizon
    return next(longest - longest % multiple for multiple in (8, 4, 2, 1) if longest >= multiple)


def _path_beside(file: Path, path: Path) -> str:
    """Return a path as the recipe `file` names it: relative if it lies below the recipe's directory."""
    folder, target = file.absolute().parent.resolve(), path.resolve()
    return os.path.relpath(target, folder) if target.is_relative_to(folder) else str(target)


def _robot(data: Path) -> str:
    from ..data.lerobot.files import read_json

    return str(read_json(data / "meta" / "info.json").get("robot_type") or "")


def _without_state(recipe: dict[str, Any]) -> None:
    """Remove the parts that read the state, and what reads them."""
    policy = recipe["policy"]
    backbones = policy.get("backbones", {})
    gone = [
        n
        for n, part in backbones.items()
        if part.get("type") in ("state", "mlp") and STATE in part.get("reads", [STATE])
    ]
    for name in gone:
        del backbones[name]
    for part in (*policy.get("necks", {}).values(), *backbones.values(), policy.get("head", {})):
        if "reads" in part:
            part["reads"] = [key for key in part["reads"] if key.split(".")[0] not in gone]
    recipe["transforms"] = [t for t in recipe.get("transforms", []) if t.get("type") != "state_dropout"]


def _without_cameras(recipe: dict[str, Any], cameras: Sequence[str]) -> None:
    """Remove cameras from what backbones read and transforms change."""
    gone = {f"{IMAGES}{name}" for name in cameras}
    parts = [(part, "reads") for part in recipe["policy"].get("backbones", {}).values()]
    parts += [(transform, "keys") for transform in recipe.get("transforms", [])]
    for part, option in parts:
        if isinstance(part.get(option), list) and (left := [key for key in part[option] if key not in gone]):
            part[option] = left


__all__ = ["Draft", "proposed", "ready_made"]
