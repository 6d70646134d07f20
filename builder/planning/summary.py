"""Size of a policy, known before it is allocated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ...schemas.diagnostics import Diagnostic
from ...schemas.specs import Spec, Specs
from ..policy import RecipePolicy


@dataclass(frozen=True)
class Summary:
    """Parts of a composed policy, their sizes, and what the policy will train."""

    name: str
    parameters: int
    trainable: int
    frozen: dict[str, int]
    """Parameters frozen by each `freeze` pattern."""
    parts: dict[str, int]
    """Parameters of each part."""
    trains: dict[str, int]
    """Trainable parameters of each part."""
    adapted: dict[str, int]
    """Layers with a low-rank adapter, by backbone with any."""
    features: Specs
    action: Spec
    unused: dict[str, int]
    """Parameters that do not affect the loss, by pattern; they are frozen too."""
    moments: int
    """Bytes of AdamW's moments of all trainable parameters, in one process."""
    warnings: tuple[Diagnostic, ...] = ()
    """Doubts that do not stop a run."""

    @property
    def training_bytes(self) -> int:
        """Bytes of weights in fp32, gradients and AdamW's moments; activations not included."""
        return 4 * self.parameters + 4 * self.trainable + self.moments


@dataclass(frozen=True)
class Checked:
    """Result of checking a recipe's policy."""

    summary: Summary | None = None
    """Sizes of a composed policy; None for a hand-written one."""
    report: Sequence[str] = ()
    """Lines on the policy that it starts from."""
    warnings: Sequence[Diagnostic] = ()
    """Doubts that do not stop a run."""


def part_sizes(policy: RecipePolicy) -> tuple[dict[str, int], dict[str, int]]:
    """Return the parameters of each part of a policy, and how many of them train."""
    parts: dict[str, nn.Module] = {f"backbones.{name}": module for name, module in policy.backbones.items()}
    parts |= {f"necks.{name}": module for name, module in policy.necks.items()}
    parts["head"] = policy.head
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in parts.items()}
    trains = {
        name: sum(p.numel() for p in module.parameters() if p.requires_grad) for name, module in parts.items()
    }
    return sizes, trains


__all__ = ["Checked", "Summary", "part_sizes"]
