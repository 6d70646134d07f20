"""Parts inside parts: an option of a head that holds a network, judged by that network's own Config.

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
    """Annotations of an option that holds the options of another part, chosen by its `type`."""

    def judge(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        try:
            part = registry.get(str(value.get("type")))
        except RegistryError as error:
            raise ValueError(str(error)) from error
        return part.Config.model_validate(value)

    any_of_its_own: Any = SerializeAsAny
    return BeforeValidator(judge), any_of_its_own(), Field(json_schema_extra={"x-part": registry.kind})
