"""Has a policy compute what it does in a faster way: layers are compiled, convolutions laid out as the device wants them.

One layer is compiled and serves all its like, so that compiling takes seconds, and graph breaks elsewhere do not matter.
A convolution whose windows do not overlap is a product of patches and weights; as such it needs no copies of images and
gradients in another memory format.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ....components.base import Learner, repeated_layers
from .module_patches import remember

_SHAPES = 64
"""Kinds of inputs that one class of layers may meet, in layers of several sizes, before it is compiled no more."""


def layers_of(policy: nn.Module) -> list[nn.Module]:
    """The layers that the parts of a policy repeat."""
    return list(dict.fromkeys(_blocks(policy)))


def compiled_blocks(policy: nn.Module, undo: ExitStack, *, trained: bool) -> list[nn.Module]:
    """Compile the layers that the parts of a policy repeat, or the `trained` ones, until `undo` closes; gives them."""
    import torch._dynamo  # takes seconds

    from .fx.passes import backend

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _SHAPES)
    torch._dynamo.config.accumulated_recompile_limit = max(
        torch._dynamo.config.accumulated_recompile_limit, 4 * _SHAPES
    )
    blocks = [
        block
        for block in layers_of(policy)
        if not trained or any(parameter.requires_grad for parameter in block.parameters())
    ]
    for block in blocks:
        remember(undo, block, "forward", "_compiled_call_impl")
        if isinstance(block, FSDPModule):  # weights come together before what is compiled
            block.forward = torch.compile(block.forward, backend=backend)
        else:
            block.compile(backend=backend)
    return blocks


def patch_products(policy: nn.Module, undo: ExitStack) -> None:
    """Let convolutions over patches compute as products of matrices, until `undo` closes."""
    for module in policy.modules():
        if isinstance(module, nn.Conv2d) and _cuts(module):
            remember(undo, module, "forward")
            module.forward = partial(_product, module)  # type: ignore[method-assign]


def channels_last(policy: nn.Module, undo: ExitStack) -> None:
    """Lay the weights of 2-D convolutions out as a GPU computes with them, until `undo` closes.

    Images and gradients follow them.
    """
    for module in policy.modules():
        if isinstance(module, nn.Conv2d) and not _cuts(module):
            if module.weight.is_contiguous():
                undo.callback(_lay, module.weight, torch.contiguous_format)
            _lay(module.weight, torch.channels_last)


def _lay(weight: Tensor, order: torch.memory_format) -> None:
    weight.data = weight.data.contiguous(memory_format=order)


@contextmanager
def eagerly(blocks: list[nn.Module]) -> Iterator[None]:
    """Layers that are compiled run as they are: for a pass or two of another shape or mode, compiling would not pay."""
    if not blocks:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _cuts(module: nn.Conv2d) -> bool:
    """Whether a plain convolution cuts images into patches."""
    return (
        type(module).forward is nn.Conv2d.forward
        and "forward" not in vars(module)
        and module.kernel_size == module.stride
        and module.kernel_size != (1, 1)
        and module.padding in ((0, 0), "valid")
        and module.dilation == (1, 1)
        and module.groups == 1
    )


def _product(module: nn.Conv2d, input: Tensor) -> Tensor:  # called as the convolution is
    """(..., C, H, W) -> (..., D, H / kernel, W / kernel); what is left of a patch at the edges is not seen."""
    images = input
    if torch.is_autocast_enabled(images.device.type):
        images = images.to(torch.get_autocast_dtype(images.device.type))
    height, width = module.kernel_size
    rows, columns = images.shape[-2] // height, images.shape[-1] // width
    images = images[..., : rows * height, : columns * width]
    cut = images.unflatten(-1, (columns, width)).unflatten(
        -3, (rows, height)
    )  # (..., C, rows, h, columns, w)
    patches = cut.movedim((-4, -2), (-5, -4)).flatten(-3)  # (..., rows, columns, C * h * w)
    return F.linear(patches, module.weight.flatten(1), module.bias).movedim(-1, -3)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The layers that learners say they repeat, or that stand in a list where no learner says anything."""
    if isinstance(module, Learner):
        return module.repeated_blocks()
    learners = [child for child in module.modules() if isinstance(child, Learner)]
    if not learners:
        return repeated_layers(module)
    return [block for child in module.children() for block in _blocks(child)]
