"""Specs: shape, kind and range of every feature of a policy, known before any weight exists.

    Spec(Kind.IMAGE, ("B", 1, 3, 96, 96), why="camera corner2 of datasets/drawer_open")

A dim is an int, or a symbol for a size of the batch: `B` (batch size) and `L` (text length).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

Dim = int | str
IMAGES = "observation.images."
"""Prefix of the key of a camera."""


class Kind(StrEnum):
    """Meaning of a tensor."""

    IMAGE = "image"  # (B, T, 3, H, W)
    STATE = "state"  # (B, T, S)
    TEXT = "text"  # B strings
    TOKEN_IDS = "token_ids"  # (B, L) int64, with `<key minus .input_ids>.attention_mask` beside it
    ACTION = "action"  # (B, H, A)
    EMBODIMENT = "embodiment"  # (B,) int64, index of the robot in the data
    TOKENS = "tokens"  # (B, N, D)
    POOLED = "pooled"  # (B, D)
    LAYERS = "layers"  # (B, L, N, D), the hidden states of L layers
    KEY_VALUES = "key_values"  # (B, L, 2, G, N, E), keys and values of L layers with G heads of size E


FEATURES = (Kind.TOKENS, Kind.POOLED, Kind.LAYERS, Kind.KEY_VALUES)
"""Kinds of the outputs of backbones and necks."""


class Range(StrEnum):
    """Range of the values of an image, a state or an action."""

    BYTES = "bytes"  # 0 to 255, uint8
    UNIT = "unit"  # floats in [0, 1]
    NORMALIZED = "normalized"  # floats around zero
    CHANGED = "changed"  # by a transform; the dataset's statistics no longer apply

    @classmethod
    def _missing_(cls, value: object) -> Range | None:
        return cls.NORMALIZED if value == "normalised" else None  # as version 0.1 saved it


@dataclass(frozen=True)
class Spec:
    """Kind and dims of one tensor.

    Attributes:
        why: Origin of the size, as a phrase.
        vocab: Number of token ids, of ids that the decoder of key_values writes, or of robots; None if
            unknown.
        range: Range of the values; None if unknown, such as a robot's own units.
        grid: For tokens from feature maps, F frames of h x w positions, row by row (N = F * h * w).
        rope: Base of the rotary embedding in keys.
        normalized_by: Mean and standard deviation of each channel that were removed from images in [0, 1].
        bounds: Minimum and maximum of a state or an action over the training episodes and all robots, in the
            units of the values; None if no statistics describe them.
    """

    kind: Kind
    dims: tuple[Dim, ...]
    why: str = ""
    vocab: int | None = None
    range: Range | None = None
    grid: tuple[int, int, int] | None = None
    rope: float | None = None
    normalized_by: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    bounds: tuple[float, float] | None = None

    @property
    def width(self) -> int:
        """Size of the last dim."""
        last = self.dims[-1]
        if not isinstance(last, int):
            raise TypeError(f"{self} has no width")
        return last

    def __str__(self) -> str:
        return f"{self.kind} ({', '.join(str(dim) for dim in self.dims)})"

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "dims": list(self.dims),
            "grid": None if self.grid is None else list(self.grid),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Spec:
        held, grid = value.get("range"), value.get("grid")
        taken = value.get("normalized_by", value.get("normalised_by"))  # version 0.1 saved the latter
        bounds = value.get("bounds")
        return cls(
            Kind(value["kind"]),
            tuple(value["dims"]),
            value.get("why", ""),
            value.get("vocab"),
            None if held is None else Range(held),
            None if grid is None else tuple(grid),
            value.get("rope"),
            None if taken is None else (tuple(taken[0]), tuple(taken[1])),
            None if bounds is None else (bounds[0], bounds[1]),
        )


Specs = Mapping[str, Spec]
