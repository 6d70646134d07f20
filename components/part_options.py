"""Options that hold the options of another part, such as the network of a head.

network: Annotated[NetworkConfig, *nested(NETWORKS)] = Field(default_factory=default_network)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BeforeValidator, Field
from pydantic.functional_serializers import SerializeAsAny

from ..schemas.errors import RegistryError
from .registry import Registry


def nested(registry: Registry[Any]) -> tuple[Any, ...]:
    """Return annotations of an option that holds the options of another part, selected by its `type`."""

    def validate(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        try:
            part = registry.get(str(value.get("type")))
        except RegistryError as error:
            raise ValueError(str(error)) from error
        return part.Config.model_validate(value)

    serialize_as_any: Any = SerializeAsAny
    return BeforeValidator(validate), serialize_as_any(), Field(json_schema_extra={"x-part": registry.kind})
