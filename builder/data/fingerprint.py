"""Digest of what is read of a dataset, which does not depend on its location."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from .frames.cache import cache_root
from .frames.digests import file_digest
from .lerobot.columns import Columns
from .lerobot.features import Storage
from .lerobot.layout import EpisodeInfo, Layout


def fingerprint(
    layout: Layout, episodes: Sequence[EpisodeInfo], cameras: Sequence[str], columns: Columns | None = None
) -> str:
    """Return the SHA-256, in hex, of metadata, data of `episodes` and videos of `cameras`.

    Digests of unchanged files are cached.
    """
    files = {*layout.metadata_files, *(episode.data_file for episode in episodes)}
    for name in cameras:
        if layout.cameras[name].storage is Storage.VIDEO:
            files |= {episode.videos[name].path for episode in episodes}
    memory = cache_root() / "digests"
    content = {str(file.relative_to(layout.root)): file_digest(file, memory=memory) for file in files}
    indices = [episode.index for episode in episodes]
    used: dict[str, Any] = {"files": content, "episodes": indices, "cameras": sorted(cameras)}
    if columns:
        used["columns"] = columns
    if trimmed := {episode.index: episode.skipped for episode in episodes if episode.skipped}:
        used["trimmed"] = trimmed
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()


__all__ = ["fingerprint"]
