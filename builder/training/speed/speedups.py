"""What is done to a policy so that it trains faster; all of it is undone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ....schemas.recipe import TrainingSection
from ...policy import BasePolicyModel
from ..distributed.sharding import mesh_of, shard, unsharded
from ..optim.fused_adamw import FusedAdamW
from .bf16_weights import Shadows, casting
from .compilation import channels_last, compiled_blocks, eagerly, layers_of, patch_products
from .float8 import float8_layers, without
from .module_patches import Statistics, remember


class Speedups:
    """Layouts, compiled layers and bfloat16 copies of a policy in training, until `undo` closes."""

    def __init__(
        self,
        policy: BasePolicyModel,
        section: TrainingSection,
        accelerator: Accelerator,
        undo: ExitStack,
        note: Callable[[str], None],
    ) -> None:
        self._policy, self._section, self._accelerator = policy, section, accelerator
        self._undo, self._note = undo, note
        self._shadows: Shadows | None = None
        self.wide: list[nn.Linear] = []
        """The layers that compute in float8."""
        self.compiled: list[nn.Module] = []
        """The layers that are compiled one by one."""
        self.bf16 = accelerator.mixed_precision == "bf16"

    def lay_out(self) -> None:
        """Bring the weights to where and how they are trained; before the optimiser is made."""
        kind = self._section.sharding
        remember(self._undo, self._policy, "forward", "_original_forward")  # accelerate puts its own there
        if kind != "off":
            mesh = mesh_of(kind, self._accelerator)
            opened = [layer for part in self._policy.key_value_parts for layer in layers_of(part)]
            shard(self._policy, layers_of(self._policy), mesh, bf16=self.bf16, opened=opened)
        elif self._accelerator.device.type == "cuda":  # FSDP2 refuses weights in another order
            channels_last(self._policy, self._undo)

    @property
    def compiles(self) -> bool:
        """Whether layers are compiled: by default on a GPU."""
        wanted = self._section.compile
        return wanted == "blocks" or (wanted == "auto" and self._accelerator.device.type == "cuda")

    def quicken(self, *, idle: bool) -> None:
        """Let wide layers compute in float8, and compile layers one by one, as far as wanted. Frozen ones may be `idle`."""
        self.wide = float8_layers(self._policy, self._section.float8, self._undo, self._note)
        if not self.compiles:
            return
        # a layer's gradients come all at once, so there is nothing to gain from splitting it
        self._undo.enter_context(torch._dynamo.config.patch(optimize_ddp=False))
        self.compiled = compiled_blocks(self._policy, self._undo, trained=idle)
        kinds = ", ".join(
            f"`{name}`" for name in sorted({unsharded(each).__name__ for each in self.compiled})
        )
        self._note(
            f"compiling {len(self.compiled)} layers one by one: {kinds}"
            if self.compiled
            else "no layers to compile"
        )
        patch_products(self._policy, self._undo)

    def copy_weights(self, optimizer: torch.optim.Optimizer, batch: Mapping[str, Any]) -> None:
        """Let modules compute with bfloat16 copies, as far as a pass over a batch has their weights cast."""
        if not self.bf16 or self._section.sharding != "off" or not isinstance(optimizer, FusedAdamW):
            return
        cast = self._agreed(casting(self._policy, lambda: self._pass(batch)))
        # several gradients add up better in float32
        self._shadows = Shadows(self._policy, cast, trained=self._section.accumulate == 1)
        self._undo.callback(self._shadows.remove)
        self._shadows.install()
        optimizer.follow(self._shadows.copies)

    def own_weights(self) -> AbstractContextManager[None]:
        """The policy has its float32 weights inside the block."""
        return nullcontext() if self._shadows is None else self._shadows.removed()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The policy computes uncompiled inside the block, with float32 weights and without float8."""
        with self.as_written(), self.own_weights():
            yield

    @contextmanager
    def as_written(self) -> Iterator[None]:
        """Layers run as they are written inside the block: neither compiled nor in float8."""
        with eagerly(self.compiled), without(self.wide):
            yield

    def _agreed(self, cast: set[nn.Module]) -> set[nn.Module]:
        """The modules that all processes found, each on its own batch."""
        modules = dict(self._policy.named_modules())
        found = gather_object([[name for name, module in modules.items() if module in cast]])
        return {modules[name] for name in set(found[0]).intersection(*found[1:])}

    def _pass(self, batch: Mapping[str, Any]) -> None:
        """A forward pass as in training, which leaves no trace."""
        statistics = Statistics(self._policy)
        try:
            with torch.no_grad(), self.paused(), self._accelerator.autocast():
                self._policy(batch)
        finally:
            statistics.put_back()
