"""Base of all pydantic models of a recipe: strict, closed, immutable."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MOST_LAYERS = 1_000
"""Largest number of stacked layers; checking a hundred thousand would take minutes."""

Count = Annotated[int, Field(ge=1)]
"""Positive number of something, such as tokens, heads or channels."""
Depth = Annotated[int, Field(ge=1, le=MOST_LAYERS)]
"""Number of stacked layers."""


class Section(BaseModel):
    """A mapping of a recipe. Unknown keys and loose types are errors; option docstrings are help texts."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, validate_default=True, use_attribute_docstrings=True
    )


class PartConfig(Section):
    """Options of one part. A subclass declares `type: Literal["<its file name>"]` without a default."""

    type: str
    """Name of the part."""


class LoraSection(Section):
    """Low-rank adapters (Hu et al., 2022): W x + (alpha / rank) B A x, of which only A and B train."""

    rank: int = Field(default=16, ge=1)
    """Rows of A and columns of B."""
    alpha: float = Field(default=16.0, gt=0.0)
    """Scale of the adapters, relative to the rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout rate of the input of the adapters."""
    targets: list[str] | None = Field(default=None, min_length=1)
    """Glob patterns of the adapted layers, by their names in the backbone, such as `*.q_proj`; by default every linear layer."""


class BackboneConfig(PartConfig):
    """Options of every backbone."""

    reads: list[str] | None = Field(default=None, min_length=1)
    """Observation keys to read, such as `observation.images.wrist`; by default all of the right kind."""
    lora: LoraSection | None = None
    """Low-rank adapters; all other parameters of the backbone are frozen."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""


class NeckConfig(PartConfig):
    """Options of every neck."""

    reads: list[str] = Field(min_length=1)
    """Backbones or other necks to read, such as `vision` or `vision.tokens`."""


class NetworkConfig(PartConfig):
    """Options of every network inside a head."""


class HeadConfig(PartConfig):
    """Options of every action head."""

    reads: list[str] | None = Field(default=None, min_length=1)
    """Backbones and necks to read, such as `vision` or `vision.tokens`; by default all that no neck reads."""
