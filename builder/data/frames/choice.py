"""The choice of how frames are kept: raw, at the size that the policy sees, or in their videos.

Reading raw frames costs a tenth of decoding them, as long as they stay in memory; frames that are read from
the disk at random cost more than decoding. So `auto` takes the largest form that fits into half of the memory
and into the cache.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ....schemas.errors import DatasetError
from .cache import entry_key, writable_root
from .decoding import FrameSource
from .room import room
from .stored import Decoded, Shrink

_logger = logging.getLogger(__name__)
FrameForm = Literal["auto", "raw", "resized", "stream"]
_CGROUP_LIMITS = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"
_NOT_TINY = 100e6
"""Bytes of frames above which the choice is worth a line in the log."""


@dataclass(frozen=True)
class FrameChoice:
    """Form in which the frames of a dataset are kept.

    Attributes:
        form: One of the forms, or `auto`.
        shrinks: What the policy does first to the images of a camera, by camera, if it makes them smaller.
    """

    form: FrameForm = "auto"
    shrinks: Mapping[str, Shrink] = field(default_factory=dict)

    def decide(self, sources: Sequence[tuple[str, FrameSource]]) -> FrameForm:
        """Return the form for the sources of cameras, given with their names, and log the reason.

        Raises:
            DatasetError: The policy sees no camera smaller than it is, but the form is `resized`.
        """
        if self.form == "resized" and not self.shrinks:
            raise DatasetError(
                "`frames: resized` needs images that the policy makes smaller: no camera has a `resize` that comes "
                "before all other transforms of images; use `frames: auto`"
            )
        if self.form != "auto" or not sources:
            return self.form
        root, memory = writable_root(), memory_size() // 2
        space = room(root, reclaim=True)
        forms: list[tuple[FrameForm, Mapping[str, Shrink]]] = [("raw", {})]
        if self.shrinks:
            forms.append(("resized", self.shrinks))
        reasons: list[str] = []
        for form, shrinks in forms:
            total, missing = _sizes(root, sources, shrinks, space)
            if total <= memory and missing <= space:
                _tell(form, total, reasons)
                return form
            limit = "half of the memory" if total > memory else f"the room in {root}"
            most = memory if total > memory else max(space, 0)
            reasons.append(f"{form} ones take {total / 1e9:,.3g} GB, and {limit} is {most / 1e9:,.3g} GB")
        _tell("stream", None, reasons)
        return "stream"


def _tell(form: FrameForm, total: int | None, reasons: Sequence[str]) -> None:
    if total is None:
        _logger.info("frames are decoded while training (`data.frames: stream`): %s", "; ".join(reasons))
    elif total > _NOT_TINY:
        why = f": {'; '.join(reasons)}" if reasons else ""
        _logger.info("frames are kept %s, %.3g GB (`data.frames: %s`)%s", form, total / 1e9, form, why)


def _sizes(
    root: Path, sources: Sequence[tuple[str, FrameSource]], shrinks: Mapping[str, Shrink], space: float
) -> tuple[int, int]:
    """Return the bytes of all frames in a form, and of those that are not in the cache, unless all fit."""
    forms = [(source, Decoded(shrinks.get(camera))) for camera, source in sources]
    total = sum(form.bytes(source) for source, form in forms)
    if total <= space:
        return total, total
    held = [(root / entry_key(source, form, root)).exists() for source, form in forms]
    return total, sum(form.bytes(s) for (s, form), there in zip(forms, held, strict=True) if not there)


def memory_size() -> int:
    """Return the bytes of memory that this process may use."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):
            sizes.append(int(Path(path).read_text()))
    return min(sizes)
