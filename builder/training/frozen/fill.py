"""Runs frozen backbones over all samples, faster where that pays."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ...policy import RecipePolicy
from ..speed.bf16_weights import Shadows, casting
from ..speed.compilation import compiled_blocks, eagerly, patch_products

WARM, TIMED = 2, 3
COMPILES = 60.0
"""Seconds of work that must be left before layers are compiled, which takes some tens itself."""

Pass = Callable[[], dict[str, Tensor]]


class FrozenPass:
    """Frozen backbones with bfloat16 copies of their weights inside a `with` block, compiled if they run for long."""

    def __init__(
        self, policy: RecipePolicy, names: Sequence[str], accelerator: Accelerator, batches: int
    ) -> None:
        """They will run over so many `batches`, or 0 if they are not to be compiled in any case."""
        self._backbones = nn.ModuleDict({name: policy.backbones[name] for name in names})
        self._half, self._device = accelerator.mixed_precision == "bf16", accelerator.device
        self._left = batches
        self._undo = ExitStack()
        self._done = 0
        self._seconds: list[float] = []
        self._compiled: list[nn.Module] = []

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            patch_products(self._backbones, self._undo)
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def __call__(self, run: Pass, *, whole: bool) -> Mapping[str, Tensor]:
        """What a pass over a batch gives; `whole` if the batch is as large as the others."""
        if self._done == 0 and self._half:
            self._copy(run)
        self._done += 1
        self._left -= 1
        if self._done <= WARM + TIMED:
            return self._timed(run) if self._left > 0 and self._done > WARM else run()
        if self._seconds and min(self._seconds) * self._left > COMPILES:
            self._compiled = compiled_blocks(self._backbones, self._undo, trained=False)
        self._seconds = []
        with nullcontext() if whole else eagerly(self._compiled):
            return run()

    def _copy(self, run: Pass) -> None:
        shadows = Shadows(self._backbones, casting(self._backbones, run), trained=False)
        self._undo.callback(shadows.remove)
        shadows.install()

    def _timed(self, run: Pass) -> Mapping[str, Tensor]:
        self._wait()
        start = time.perf_counter()
        entries = run()
        self._wait()
        self._seconds.append(time.perf_counter() - start)
        return entries

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
