"""Conversion of other formats into a LeRobot dataset.

    convert("demo_v15/low_dim.hdf5", "datasets/lift", fps=20, task="Lift the cube")

| format | layout |
|---|---|
| robomimic | HDF5: `data/demo_0/actions`, `data/demo_0/obs/<key>` |
| ACT | HDF5, one file an episode: `action`, `observations/qpos`, `observations/images/<camera>` |
| Diffusion Policy | zarr, a directory or a zip: `data/action`, `data/<key>`, `meta/episode_ends` |

Formats: https://robomimic.github.io, https://github.com/tonyzhaozh/act,
https://github.com/real-stanford/diffusion_policy
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ....schemas.errors import DatasetError
from ....schemas.specs import IMAGES
from .staging import require_empty
from .writer import LeRobotWriter

Episode = Mapping[str, npt.NDArray[Any]]
_HDF5 = (".hdf5", ".h5")
_STATES = ("qpos", "state", "agent_pos")
"""Names of columns that become the state, if nothing else is called `state`."""
Progress = Callable[[int], None]


def convert(
    source: str | Path,
    output: str | Path,
    *,
    fps: int,
    task: str,
    progress: Progress = lambda episodes: None,
) -> int:
    """Write the episodes of `source` to a new dataset, and return their number.

    Images become video. Of the other columns, `actions` becomes `action`, and the first of `state`, `qpos` or
    `agent_pos` becomes `observation.state`; the rest become `observation.<name>`, flat.

    Args:
        source: A file or directory of one of the formats.
        output: Directory of the dataset, absent or empty.
        fps: Frames per second, which these formats do not hold.
        task: The instruction.
        progress: Called with the number of episodes written.

    Raises:
        DatasetError: The source is damaged or of another format, or a package is missing.
    """
    source, output = Path(source), Path(output)
    require_empty(output)
    if not source.exists():
        raise DatasetError(f"{source} is missing; check the path")
    written = 0
    episodes = _episodes(source)
    first = next(episodes, None)
    if first is None:
        raise DatasetError(f"{source} has no episodes; choose another file")
    cameras = {k.removeprefix(IMAGES): v.shape[2:] for k, v in first.items() if k.startswith(IMAGES)}
    vectors = {
        key: [f"{key.rpartition('.')[2]}_{i}" for i in range(values.shape[1])]
        for key, values in first.items()
        if not key.startswith(IMAGES)
    }
    with LeRobotWriter(output, fps=fps, cameras=cameras, vectors=vectors) as writer:
        for episode in chain([first], episodes):
            writer.add_episode(task, episode)
            written += 1
            progress(written)
        writer.write_json("meta/conversion.json", {"source": source.name, "fps": fps, "task": task})
    return written


def _episodes(source: Path) -> Iterator[Episode]:
    if source.suffix in _HDF5:
        yield from _hdf5(source)
    elif source.is_dir() and (files := sorted(source.glob("*.hdf5"), key=_number)):
        for file in files:
            yield from _hdf5(file)
    elif source.suffix in (".zarr", ".zip") or (source / "meta/episode_ends").exists():
        yield from _zarr(source)
    else:
        raise DatasetError(
            f"{source} is neither HDF5 (robomimic, ACT) nor zarr (Diffusion Policy); name an .hdf5 file, a directory of "
            "them, or a .zarr"
        )


def _number(path: Path) -> tuple[int, str]:
    """Return the last number in a name, so that episode 10 comes after episode 9."""
    numbers = re.findall(r"\d+", path.name)
    return int(numbers[-1]) if numbers else 0, path.name


def _hdf5(path: Path) -> Iterator[Episode]:
    h5py = _package("h5py")
    with _reading(path), h5py.File(path, "r") as file:
        if "data" in file:
            demos = sorted(file["data"], key=lambda name: _number(Path(name)))
            for name in demos:
                demo = file["data"][name]
                yield _episode({"actions": demo["actions"][:], **_flat(demo["obs"])}, f"{path}: {name}")
        elif "action" in file and "observations" in file:
            observed = _flat(file["observations"])
            yield _episode({"action": file["action"][:], **observed}, str(path))
        else:
            raise DatasetError(
                f"{path} has {', '.join(f'`{name}`' for name in file) or 'nothing'}, and neither `data/demo_0` of robomimic "
                "nor `action` and `observations` of ACT; choose another file"
            )


def _flat(group: Any) -> dict[str, Any]:
    """Return the arrays of a group, those of nested groups under their last name."""
    found: dict[str, Any] = {}
    for name, value in group.items():
        for key, held in (_flat(value) if hasattr(value, "items") else {name: value[:]}).items():
            if key in found:
                raise DatasetError(
                    f"{group.file.filename}: two groups below {group.name} have an array `{key}`; rename one"
                )
            found[key] = held
    return found


def _zarr(path: Path) -> Iterator[Episode]:
    zarr = _package("zarr")
    with _reading(path):
        store = zarr.storage.ZipStore(path, mode="r") if path.suffix == ".zip" else path
        root = zarr.open_group(store, mode="r")
        ends = np.asarray(root["meta/episode_ends"][:], dtype=np.int64)
        arrays = dict(root["data"].arrays())
        start = 0
        for number, end in enumerate(ends.tolist()):
            rows = {name: np.asarray(array[start:end]) for name, array in arrays.items()}
            yield _episode(rows, f"{path}: episode {number}")
            start = end


def _episode(columns: Mapping[str, npt.NDArray[Any]], place: str) -> Episode:
    """Return an episode under LeRobot's names: uint8 (T, 3, H, W) images, float32 (T, D) vectors."""
    found: dict[str, npt.NDArray[Any]] = {}
    state = next((name for name in _STATES if name in columns), None)
    for name, values in columns.items():
        if not len(values):
            raise DatasetError(f"{place}: `{name}` has no rows; leave out the episode")
        if values.ndim == 4:
            key, held = f"{IMAGES}{name.removesuffix('_image')}", _images(values, f"{place}: `{name}`")
        else:
            held = np.ascontiguousarray(values.reshape(len(values), -1), dtype=np.float32)
            key = "observation.state" if name == state else f"observation.{name}"
            key = "action" if name in ("action", "actions") else key
        if key in found:
            raise DatasetError(f"{place}: `{name}` and another column would both become `{key}`; rename one")
        found[key] = held
    if "action" not in found:
        raise DatasetError(f"{place} has no `action` or `actions`; choose another file")
    lengths = {key: len(values) for key, values in found.items()}
    if len(set(lengths.values())) > 1:
        raise DatasetError(
            f"{place} has columns of different lengths, {lengths}; repair or leave out the episode"
        )
    return found


def _images(values: npt.NDArray[Any], place: str) -> npt.NDArray[np.uint8]:
    """Return images (T, H, W, 3) or (T, 3, H, W), in bytes or as floats of bytes, as uint8 (T, 3, H, W)."""
    if values.shape[-1] == 3:
        values = values.transpose(0, 3, 1, 2)
    elif values.shape[1] != 3:
        raise DatasetError(f"{place} has images of shape {values.shape[1:]}, not RGB; leave out this column")
    if values.dtype != np.uint8:
        low, high = float(values.min()), float(values.max())
        if not 0.0 <= low <= high <= 255.0:  # NaN included
            raise DatasetError(
                f"{place} has {values.dtype} images with values from {low:g} to {high:g}; bring them to 0 to 255, or floats "
                "to 0 to 1"
            )
        scale = 255.0 if high <= 1.0 else 1.0
        values = np.clip(np.rint(values * scale), 0, 255)
    return np.ascontiguousarray(values, dtype=np.uint8)


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise DatasetError(
            f"this format needs the package {name}; pip install 'policysmith[convert]'"
        ) from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Convert any error of a library into a DatasetError."""
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DatasetError(f"{path} cannot be read ({reason}); download or copy it again") from error


__all__ = ["convert"]
