"""Base of every pydantic model of a recipe: strict, closed, immutable."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MOST_LAYERS = 1_000
"""Layers that a part may stack: no policy has more, and to check a hundred thousand would take minutes."""

Count = Annotated[int, Field(ge=1)]
"""Positive number of something, such as tokens, heads or channels."""
Depth = Annotated[int, Field(ge=1, le=MOST_LAYERS)]
"""Number of stacked layers."""


class Section(BaseModel):
    """A mapping of a recipe. Unknown keys and loose types are errors; attribute docstrings become its help."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, validate_default=True, use_attribute_docstrings=True
    )


class PartConfig(Section):
    """Options of one part. A subclass declares `type: Literal["<its file name>"]` without a default."""

    type: str
    """Which part of its kind."""


class LoraSection(Section):
    """Low-rank adapters (Hu et al., 2022): what a layer gives, W x, becomes W x + (alpha / rank) B A x, and only A and B train."""

    rank: int = Field(default=16, ge=1)
    """Rows of A and columns of B."""
    alpha: float = Field(default=16.0, gt=0.0)
    """Weight of the adapters, in units of the rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout rate of what the adapters read."""
    targets: list[str] | None = Field(default=None, min_length=1)
    """Glob patterns of the layers that get an adapter, by their names in the backbone, such as `*.q_proj`; by default every linear one."""


class BackboneConfig(PartConfig):
    """Options that every backbone has."""

    reads: list[str] | None = Field(default=None, min_length=1)
    """Observation keys to read, such as `observation.images.wrist`; by default every one of the right kind."""
    lora: LoraSection | None = None
    """Low-rank adapters beside its layers. Only these train: every other parameter of the backbone rests."""
    gradient_checkpointing: bool = False
    """Keep less for the backward pass, which computes the layers once more: less memory, more time."""


class NeckConfig(PartConfig):
    """Options that every neck has."""

    reads: list[str] = Field(min_length=1)
    """Backbones or other necks to read, as `vision` or `vision.tokens`."""


class NetworkConfig(PartConfig):
    """Options of a network inside a head."""


class HeadConfig(PartConfig):
    """Options that every action head has."""

    reads: list[str] | None = Field(default=None, min_length=1)
    """Backbones and necks to read, as `vision` or `vision.tokens`; by default all that no neck reads."""
