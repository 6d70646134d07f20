"""Base of every pydantic model of a recipe: strict, closed, immutable."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A mapping of a recipe. Unknown keys and loose types are errors; attribute docstrings become its help."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, validate_default=True, use_attribute_docstrings=True
    )


class PartConfig(Section):
    """Options of one part. A subclass declares `type: Literal["<its file name>"]` without a default."""

    type: str
    """Which part of its kind."""


class BackboneConfig(PartConfig):
    """Options that every backbone has."""

    reads: list[str] | None = Field(default=None, min_length=1)
    """Observation keys to read, such as `observation.images.wrist`; by default every one of the right kind."""


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
