"""Changes of a policy that make it train faster, until the run ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ....schemas.recipe import TrainingSection
from ...convolutions import channels_last, patch_products
from ...module_patches import BufferSnapshot, restore_later
from ...policy import BasePolicyModel
from ..distributed.sharding import mesh_of, shard, unsharded
from .bf16_weights import BF16Copies, cast_modules
from .compilation import compile_layers, eager, layers_of


def place(
    policy: BasePolicyModel, section: TrainingSection, accelerator: Accelerator, undo: ExitStack
) -> None:
    """Move the weights to the device, sharded or in its memory format, before an optimizer is built."""
    policy.to(accelerator.device)
    restore_later(undo, policy, "forward", "_original_forward")  # accelerate replaces them
    if section.sharding != "off":
        layers = layers_of(policy)
        kept_whole = [layer for part in policy.key_value_parts for layer in layers_of(part)]
        mesh, bf16 = mesh_of(section.sharding, accelerator), accelerator.mixed_precision == "bf16"
        shard(policy, layers, mesh, bf16=bf16, kept_whole=kept_whole)
    elif accelerator.device.type == "cuda":  # FSDP2 refuses weights in another order
        channels_last(policy, undo)


class Speedups:
    """Compiled layers and bfloat16 copies of a policy in training, until `undo` closes."""

    def __init__(
        self,
        policy: BasePolicyModel,
        section: TrainingSection,
        accelerator: Accelerator,
        undo: ExitStack,
        note: Callable[[str], None],
        *,
        frozen_idle: bool,
    ) -> None:
        """Change the layers as far as wanted; frozen ones may be `frozen_idle`, because their features are stored."""
        self._policy, self._accelerator = policy, accelerator
        self._compiled: list[nn.Module] = []
        self._copies: BF16Copies | None = None
        self._undo = undo
        if section.compile == "blocks" or (section.compile == "auto" and accelerator.device.type == "cuda"):
            self._compiled = compile_layers(policy, undo, trained=frozen_idle)
            kinds = sorted({unsharded(layer).__name__ for layer in self._compiled})
            note(
                f"compiling {len(self._compiled)} layers one by one: {', '.join(f'`{kind}`' for kind in kinds)}"
                if self._compiled
                else "no layers to compile"
            )
            patch_products(policy, undo)

    def copy_weights(self, batch: Mapping[str, Any], *, trained: bool) -> Mapping[nn.Parameter, nn.Parameter]:
        """Let modules compute with bfloat16 copies of the weights that autocast casts in a pass over a batch.

        Return the copies. All processes copy the same weights. Trained weights are left out unless `trained`.
        """
        cast = self._in_all_processes(cast_modules(self._policy, lambda: self._forward(batch)))
        self._copies = BF16Copies(self._policy, cast, trained=trained)
        self._undo.callback(self._copies.remove)
        self._copies.install()
        return self._copies.copies

    def own_weights(self) -> AbstractContextManager[None]:
        """Give the policy its float32 weights while the context is active."""
        return nullcontext() if self._copies is None else self._copies.removed()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Compute uncompiled and with float32 weights while the context is active."""
        with self.plain_layers(), self.own_weights():
            yield

    def plain_layers(self) -> AbstractContextManager[None]:
        """Run layers as they are written, uncompiled, while the context is active."""
        return eager(self._compiled)

    def _in_all_processes(self, cast: set[nn.Module]) -> set[nn.Module]:
        """Return the modules that every process found, each on its own batch."""
        modules = dict(self._policy.named_modules())
        found = gather_object([[name for name, module in modules.items() if module in cast]])
        return {modules[name] for name in set(found[0]).intersection(*found[1:])}

    def _forward(self, batch: Mapping[str, Any]) -> None:
        """Run a forward pass as in training that leaves no trace."""
        buffers = BufferSnapshot(self._policy)
        try:
            with torch.no_grad(), self.paused(), self._accelerator.autocast():
                self._policy(batch)
        finally:
            buffers.restore()
