"""Private API of torch and transformers, in one place. Read at torch 2.14 and transformers 5.24."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


def is_own_model_type(name: str) -> bool:
    """Return whether transformers itself has a model of this type (`CONFIG_MAPPING._mapping`)."""
    return name in CONFIG_MAPPING._mapping


def registered_config(name: str) -> type[PretrainedConfig] | None:
    """Return the config class that somebody registered for a model type (`CONFIG_MAPPING._extra_content`)."""
    config: type[PretrainedConfig] | None = CONFIG_MAPPING._extra_content.get(name)
    return config


def registered_model(config: type[PretrainedConfig]) -> Any:
    """Return the model class that `AutoModel` builds for a config class (`AutoModel._model_mapping`)."""
    models: Any = AutoModel._model_mapping
    return models[config]


def storage_id(tensor: Tensor) -> int:
    """Return a number that tensors share if they share memory, also on the meta device (`UntypedStorage._cdata`)."""
    return int(tensor.untyped_storage()._cdata)


def unsaved_buffer_names(module: nn.Module) -> set[str]:
    """Return the names of a module's own buffers that its state dict leaves out (`_non_persistent_buffers_set`)."""
    return module._non_persistent_buffers_set


__all__ = ["is_own_model_type", "registered_config", "registered_model", "storage_id", "unsaved_buffer_names"]
