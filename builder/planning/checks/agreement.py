"""Agreement of the datasets of a recipe, whose samples share batches: cameras, sizes, order, and one robot's numbers."""

from __future__ import annotations

from collections.abc import Sequence

from ....schemas.diagnostics import Diagnostic
from ....schemas.errors import SpecError
from ....schemas.yaml.nodes import KeyPath
from ...data.lerobot.features import ACTION
from ...data.signals import Signals, listed, order
from ...recipe.loaded import LoadedRecipe
from ..sources import DataSource


def disagreements(loaded: LoadedRecipe, sources: Sequence[DataSource]) -> list[Diagnostic]:
    """Return a finding for every source that differs from an earlier one where both must agree."""
    found = []
    first, *others = sources
    have: dict[str, DataSource] = dict.fromkeys(first.cameras, first)
    for source in others:
        one, other = ({*s.cameras, *s.absent} for s in (first, source))
        lacking, extra = (
            [n for n in first.cameras if n not in other],
            [n for n in source.cameras if n not in one],
        )
        other_size = [
            n for n in source.cameras if n in have and source.image_size(n) != have[n].image_size(n)
        ]
        have = dict.fromkeys(source.cameras, source) | have
        found += _other_order(loaded, source, first)
        twin = next((s for s in sources[: sources.index(source)] if s.robot == source.robot), None)
        if twin is not None:
            found += _other_robot(loaded, source, twin)
        if lacking:
            found.append(_missing(loaded, source, lacking[0], first))
        elif extra:
            found.append(_missing(loaded, first, extra[0], source))
        elif other_size:
            found.append(_of_another_size(loaded, source, other_size[0], have[other_size[0]]))
    for source in sources:
        for name in source.absent - have.keys():
            fault = SpecError(f"no dataset has camera `{name}`", label="absent everywhere", help="remove it")
            place = (*source.place, "cameras", name)
            found.append(loaded.diagnostic(place, fault, code="E023 bad-dataset"))
    return found


def _other_robot(loaded: LoadedRecipe, source: DataSource, twin: DataSource) -> list[Diagnostic]:
    """Return a finding if two datasets of one robot differ in its states, actions, rate or images."""
    here, there = source.info, twin.info
    other_size = [
        n
        for n in source.cameras
        if n in twin.cameras and here.cameras[source.cameras[n]] != there.cameras[twin.cameras[n]]
    ]
    if here.vectors != there.vectors or here.action_dim != there.action_dim:
        one, other = (
            ", ".join(f"`{key}` {dim}" for key, dim in {**info.vectors, ACTION: info.action_dim}.items())
            for info in (here, there)
        )
    elif here.fps != there.fps:
        one, other = f"{here.fps:g} frames per second", f"{there.fps:g}"
    elif other_size:
        one, other = (
            f"`{other_size[0]}` at {' x '.join(map(str, info.cameras[names[other_size[0]]]))} pixels"
            for info, names in ((here, source.cameras), (there, twin.cameras))
        )
    else:
        return []
    fault = SpecError(
        f"`{source.name}` and `{twin.name}` are of one robot, `{source.robot}`, but differ",
        label=f"it has {one}",
        help="give them the robots that they are of, or map their columns alike, `columns`",
    )
    related = [(twin.place, f"it has {other}")]
    return [loaded.diagnostic((*source.place, "path"), fault, code="E023 bad-dataset", related=related)]


def _other_order(loaded: LoadedRecipe, source: DataSource, other: DataSource) -> list[Diagnostic]:
    """Return findings for two datasets of one robot with the same names in another order."""
    found = []
    for key, own, names in Signals.of(source.info).pairs(Signals.of(other.info)):
        if order(own, names) is not None:
            fault = SpecError(
                f"`{source.name}` has `{key}` in the order {listed(own)}, `{other.name}` in the order {listed(names)}",
                label="the same names in another order",
                help="reorder one of the datasets",
            )
            place = (*source.place, "path")
            related = [((*other.place, "path"), "the other order")]
            found.append(loaded.diagnostic(place, fault, code="E023 bad-dataset", related=related))
    return found


def _missing(loaded: LoadedRecipe, source: DataSource, camera: str, other: DataSource) -> Diagnostic:
    own = ", ".join(f"`{name}`" for name in source.info.cameras) or "no camera"
    fault = SpecError(
        f"`{source.name}` has no camera `{camera}`, which `{other.name}` has; all robots must see the same",
        label=f"its dataset has {own}",
        help=f"give one of its cameras this name, `cameras: {{{camera}: <name in its dataset>}}`, or null for black images, or "
        f"leave `{camera}` out of the `cameras` of `{other.name}`",
    )
    return _differs(loaded, source, fault, (other.place, f"has `{camera}`"))


def _of_another_size(loaded: LoadedRecipe, source: DataSource, camera: str, other: DataSource) -> Diagnostic:
    (height, width), (h, w) = source.image_size(camera), other.image_size(camera)
    fault = SpecError(
        f"`{source.name}` and `{other.name}` have camera `{camera}` at different sizes; one batch holds both",
        label=f"{height} x {width} pixels (height x width)",
        help=f"add `resize: [{h}, {w}]` (height, width) to `{source.name}`, or one size to both",
    )
    return _differs(loaded, source, fault, (other.place, f"{h} x {w} pixels (height x width)"))


def _differs(
    loaded: LoadedRecipe, source: DataSource, fault: SpecError, other: tuple[KeyPath, str]
) -> Diagnostic:
    place = (*source.place, "cameras")
    return loaded.diagnostic(place, fault, code="E023 bad-dataset", related=[other])


__all__ = ["disagreements"]
