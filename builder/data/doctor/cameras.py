"""Doubts about images: cameras that are frozen, dark or swapped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ....schemas.errors import DatasetError
from ..frames.choice import FrameChoice
from ..frames.store import open_cameras
from ..lerobot.features import Camera
from ..lerobot.layout import EpisodeInfo, Layout
from .findings import Finding, Severity, listed

_EPISODES, _FRAMES, _SIDE = 24, 5, 16
_STILL, _DARK = 0.5, 6.0
"""Levels of 255 up to which images are the same, or black."""


def image_doubts(
    layout: Layout, cameras: Sequence[Camera], episodes: Sequence[EpisodeInfo], moving: frozenset[int]
) -> list[Finding]:
    """Return the doubts about images of up to `_EPISODES` evenly spaced episodes; robots move in those of `moving`."""
    some = [episodes[i] for i in np.unique(np.linspace(0, len(episodes) - 1, _EPISODES).astype(int))]
    try:
        stores = open_cameras(layout, cameras, some, FrameChoice("stream"))
    except DatasetError:  # which `reading_faults` tells
        return []
    firsts = np.cumsum([0, *(episode.length for episode in some[:-1])])
    small: dict[str, npt.NDArray[np.float32]] = {}
    found: list[Finding] = []
    for name, store in stores.items():
        seen, frozen, dark = [], [], []
        for episode, first in zip(some, firsts, strict=True):
            rows = np.unique(np.linspace(first, first + episode.length - 1, _FRAMES).astype(int))
            try:
                images = store.read(rows.tolist()).astype(np.float32)
            except DatasetError:
                break
            seen.append(_thumbnail(images[0]))
            if (
                len(images) > 1
                and episode.index in moving
                and np.abs(np.diff(images, axis=0)).mean() < _STILL
            ):
                frozen.append(episode.index)
            if images.mean() < _DARK:
                dark.append(episode.index)
        small[name] = np.stack(seen) if seen else np.empty((0, 3 * _SIDE * _SIDE), np.float32)
        for concerned, word in ((frozen, "shows the same image throughout"), (dark, "is black")):
            if concerned:
                found.append(
                    _doubt(
                        "frozen camera" if concerned is frozen else "dark camera",
                        f"camera `{name}` {word} in {listed(concerned)} of {len(some)} looked at; leave out these "
                        "episodes, or the camera",
                        concerned,
                    )
                )
    return found + list(_swapped(small, [episode.index for episode in some]))


def _swapped(small: dict[str, npt.NDArray[np.float32]], episodes: Sequence[int]) -> Iterator[Finding]:
    """Yield pairs of cameras of which each shows in some episodes what the other usually shows."""
    names = [name for name, seen in small.items() if len(seen) == len(episodes) >= 3]
    usual = {name: np.median(small[name], axis=0) for name in names}
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            odd = [
                episode
                for number, episode in enumerate(episodes)
                if _nearer(small[one][number], usual[other], usual[one])
                and _nearer(small[other][number], usual[one], usual[other])
            ]
            if odd and len(odd) < len(episodes) / 2:
                yield _doubt(
                    "swapped cameras",
                    f"cameras `{one}` and `{other}` seem swapped in {listed(odd)} of {len(episodes)} looked at: each shows what "
                    "the other usually does; swap their videos, or leave out these episodes",
                    odd,
                )


def _nearer(
    image: npt.NDArray[np.float32], one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]
) -> bool:
    return float(np.abs(image - one).mean()) < 0.7 * float(np.abs(image - other).mean())


def _thumbnail(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a flat thumbnail of an image (3, H, W), by the nearest pixels."""
    rows, columns = (np.linspace(0, side - 1, _SIDE).astype(int) for side in image.shape[1:])
    return image[:, rows[:, None], columns].ravel()


def _doubt(kind: str, text: str, episodes: Sequence[int]) -> Finding:
    return Finding(Severity.WARNING, kind, text, tuple(episodes))
