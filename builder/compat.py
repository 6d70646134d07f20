"""Private API of torch and transformers, in one place. Read at torch 2.14 and transformers 5.24."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from transformers import AutoModel, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import import_utils


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
    """Return the identity of a tensor's memory, also on the meta device (`UntypedStorage._cdata`)."""
    return int(tensor.untyped_storage()._cdata)


def unsaved_buffer_names(module: nn.Module) -> set[str]:
    """Return the names of a module's own unsaved buffers (`_non_persistent_buffers_set`)."""
    return module._non_persistent_buffers_set


def foreach_norm(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return the 2-norm of each tensor, summed in `dtype` (`torch._foreach_norm`)."""
    return cast("list[Tensor]", torch._foreach_norm(list(tensors), 2.0, dtype))


def foreach_lerp_(tensors: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """Move each tensor towards another, in place (`torch._foreach_lerp_`)."""
    torch._foreach_lerp_(list(tensors), list(ends), weight)


def foreach_copy_(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Overwrite each tensor by another (`torch._foreach_copy_`)."""
    torch._foreach_copy_(list(tensors), list(values))


def is_functorch_tensor(value: Tensor) -> bool:
    """Return whether a transform such as vmap holds a tensor (`torch._C._functorch`)."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(value))


def is_wrapper_tensor(value: object) -> bool:
    """Return whether a tensor wraps others, as quantized weights do (`torch.utils._python_dispatch`)."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    return is_traceable_wrapper_subclass(value)


def in_backward_pass() -> bool:
    """Return whether autograd is running a backward pass in this thread (`torch._C`)."""
    return torch._C._current_graph_task_id() != -1


def compile_with_inductor(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """Compile a traced graph with inductor (`torch._dynamo.lookup_backend`)."""
    from torch._dynamo import lookup_backend

    return lookup_backend("inductor")(graph, inputs)


def dynamo_limits(shapes: int) -> AbstractContextManager[None]:
    """Compile one class of layers for up to so many kinds of inputs (`torch._dynamo.config`).

    Layers are not split for DDP, which would gain nothing: the gradients of a layer come all at once.
    """
    import torch._dynamo  # takes seconds

    config = torch._dynamo.config
    return cast(
        "AbstractContextManager[None]",
        config.patch(
            recompile_limit=max(config.recompile_limit, shapes),
            accumulated_recompile_limit=max(config.accumulated_recompile_limit, 4 * shapes),
            optimize_ddp=False,
        ),
    )


def coalesced() -> AbstractContextManager[Any]:
    """Send collectives together while the context is active (`torch.distributed._coalescing_manager`)."""
    return cast("AbstractContextManager[Any]", torch.distributed._coalescing_manager())  # type: ignore[attr-defined]


def process_store() -> Any:
    """Return the store by which processes found each other (`torch.distributed.distributed_c10d`)."""
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def recover_from_failed_capture(pool: Any) -> None:
    """End a failed capture for the allocator and the random generator of the device (`torch._C`)."""
    device = torch.cuda.current_device()
    with suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(device, pool)
    fresh = torch.Generator(device=f"cuda:{device}")
    torch.cuda.default_generators[device].graphsafe_set_state(fresh.graphsafe_get_state())


@contextmanager
def masks_as_outside_capture() -> Iterator[None]:
    """Let transformers omit attention masks during a capture (`import_utils.is_cuda_stream_capturing`)."""
    known = import_utils.is_cuda_stream_capturing
    import_utils.is_cuda_stream_capturing = lambda: False
    try:
        yield
    finally:
        import_utils.is_cuda_stream_capturing = known


@contextmanager
def meta_nonzero() -> Iterator[None]:
    """Let boolean masks on the meta device select everything (`torch.fx.experimental._config`).

    Vision towers of transformers select patches by mask; without this, torch refuses.
    """
    from torch.fx.experimental import _config

    known = _config.meta_nonzero_assume_all_nonzero
    _config.meta_nonzero_assume_all_nonzero = True
    try:
        yield
    finally:
        _config.meta_nonzero_assume_all_nonzero = known
