"""Episodes of datasets that are edited, and the parts of them that stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..lerobot.features import Camera
from ..lerobot.layout import EpisodeInfo, Layout


@dataclass(frozen=True)
class Source:
    """A dataset, with the features and cameras that stay."""

    layout: Layout
    info: Mapping[str, Any]
    features: Mapping[str, Any]
    cameras: tuple[Camera, ...]


@dataclass(frozen=True)
class Piece:
    """An episode of a dataset, whole and as it is used."""

    source: Source
    whole: EpisodeInfo
    used: EpisodeInfo


__all__ = ["Piece", "Source"]
