"""`policy.init.cameras`: a dataset's cameras under the names that a trained policy knows.

`cameras: {front: top, wrist: null}` reads the dataset's `top` as `front` and no other camera. It is an
abbreviation of `data.columns` and `data.cameras`, so everything that reads the data follows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...schemas.errors import SpecError
from ...schemas.recipe import InitSection, Recipe
from ...schemas.specs import IMAGES
from ...schemas.yaml.nodes import KeyPath

PLACE: KeyPath = ("policy", "init", "cameras")


def init_cameras(recipe: Recipe) -> Mapping[str, str | None]:
    """Return the dataset's camera for each camera of the trained policy; empty if the recipe names none."""
    init = recipe.policy.init
    return (init.cameras or {}) if isinstance(init, InitSection) else {}


def with_init_cameras(recipe: Recipe) -> Recipe:
    """Return the recipe with `policy.init.cameras` in its `data` section."""
    own = {base: camera for base, camera in init_cameras(recipe).items() if camera is not None}
    if not own:
        return recipe
    columns = {f"{IMAGES}{base}": f"{IMAGES}{camera}" for base, camera in own.items()}
    data = {"cameras": sorted(own), "columns": {**(recipe.data.columns or {}), **columns}}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=data)})


def init_camera_faults(recipe: Recipe) -> Iterator[tuple[KeyPath, SpecError]]:
    """Yield what contradicts `policy.init.cameras` in the recipe itself, each with its place."""
    cameras = init_cameras(recipe)
    if not cameras:
        return
    own = {base: camera for base, camera in cameras.items() if camera is not None}
    if not own:
        yield (
            PLACE,
            SpecError("no camera is left", label="all are null", help="name a camera of the dataset for one"),
        )
    if recipe.data.sources is not None:
        yield (
            PLACE,
            SpecError(
                "`policy.init.cameras` is for one dataset, and `data.sources` has several",
                label="which dataset's?",
                help="name the cameras of each source, `cameras: {<camera of the policy>: <its own>}`",
            ),
        )
        return
    for base, camera in own.items():
        twice = next(name for name, other in own.items() if other == camera)
        if twice != base:
            yield (
                (*PLACE, base),
                SpecError(
                    f"camera `{camera}` is given for `{twice}` and for `{base}`",
                    label="named twice",
                    help="name each camera of the dataset once, or null",
                ),
            )
        key = f"{IMAGES}{base}"
        if (recipe.data.columns or {}).get(key, f"{IMAGES}{camera}") != f"{IMAGES}{camera}":
            yield (
                ("data", "columns", key),
                SpecError(
                    f"`{key}` has two origins, here and in `policy.init.cameras`",
                    label="another camera",
                    help="keep one of them",
                ),
            )
    if own and recipe.data.cameras is not None and sorted(recipe.data.cameras) != sorted(own):
        yield (
            ("data", "cameras"),
            SpecError(
                "`policy.init.cameras` and `data.cameras` name other cameras",
                label=f"`policy.init.cameras` names {', '.join(f'`{name}`' for name in own)}",
                help="remove `data.cameras`",
            ),
        )


__all__ = ["PLACE", "init_camera_faults", "init_cameras", "with_init_cameras"]
