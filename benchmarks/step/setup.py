"""Inputs of every trainer: one policy, the same batches in the same order, the same settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from policysmith.builder.data.sampler import ResumableSampler
from policysmith.builder.policy import BasePolicyModel
from policysmith.builder.training.batches import keyed_indices
from policysmith.builder.training.optim.groups import parameter_groups
from policysmith.builder.training.optim.schedule import learning_rate
from policysmith.builder.training.randomness import mix
from policysmith.components.randomness.per_sample import SAMPLE_KEY
from policysmith.schemas.recipe import TrainingSection

from .protocol import Protocol
from .synthetic import SyntheticBuilder
from .workloads import Work


@dataclass(frozen=True)
class Bench:
    """A policy with its initial weights on the device, and its batches, which stay there."""

    policy: BasePolicyModel
    batches: Sequence[dict[str, Any]]
    builder: SyntheticBuilder
    protocol: Protocol
    device: torch.device

    @classmethod
    def make(cls, work: Work, protocol: Protocol, device: torch.device, changes: Sequence[str]) -> Bench:
        """Build policy and batches of a work."""
        builder = SyntheticBuilder.of(
            work,
            changes,
            steps=protocol.total,
            batch_size=work.batch,
            log_every=protocol.log_every,
            precision="bf16" if device.type == "cuda" else "fp32",
            schedule={"type": "cosine", "warmup": min(20, protocol.total // 2)},
            workers=0,
            save_every=None,
        )
        policy = builder.build(device.type)
        return cls(
            policy, builder.batches(policy, work.batch, work.batches, device), builder, protocol, device
        )

    @property
    def section(self) -> TrainingSection:
        """The recipe's training section."""
        return self.builder.recipe.sections.training

    @property
    def size(self) -> int:
        """Number of samples in all batches."""
        return len(self.batches) * self.section.batch_size

    def held(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return the batch that holds the first of these samples, whole, so that nothing is copied."""
        return self.batches[indices[0] // self.section.batch_size]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batch of every step, in the order of this project's trainer."""
        sampler = ResumableSampler(self.size, batch_size=self.section.batch_size, seed=self.section.seed)
        for indices, keys in keyed_indices(sampler):
            yield {**self.held(indices), SAMPLE_KEY: keys.to(self.device)}

    def seed(self, step: int) -> None:
        """Seed torch for a compared step as this project's trainer does."""
        if step < self.protocol.loss_steps:
            torch.manual_seed(mix(self.section.seed, step, 0, 0))

    def adamw(self) -> torch.optim.AdamW:
        """Build torch's AdamW with its defaults, and the groups of this project's trainer."""
        section = self.section.optimizer
        groups = parameter_groups(self.policy, section)
        for group in groups:
            group["lr"] = section.lr * float(group["lr_scale"])  # type: ignore[arg-type]
        beta1, beta2 = section.betas
        return torch.optim.AdamW(groups, betas=(beta1, beta2), eps=section.eps)

    def schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        """Build a scheduler of torch with the learning rates of this project's trainer."""
        section = self.section
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(step, section.steps, 1.0, section.schedule)
        )
