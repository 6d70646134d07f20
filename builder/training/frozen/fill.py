"""Faster frozen backbones while their features are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from ...convolutions import patch_products
from ..speed.bf16_weights import BF16Copies, cast_modules


@contextmanager
def fast_backbones(backbones: nn.Module, run: Callable[[], object], precision: str) -> Iterator[None]:
    """Let frozen backbones compute faster while the context is active.

    Under bf16, modules compute with copies of the weights that autocast casts during a call of `run`. On a
    GPU, convolutions over patches are products of matrices.
    """
    with ExitStack() as undo:
        if next(backbones.parameters()).is_cuda:
            patch_products(backbones, undo)
        if precision == "bf16":
            copies = BF16Copies(backbones, cast_modules(backbones, run), trained=False)
            undo.callback(copies.remove)
            copies.install()
        yield
