"""A hand-written policy that needs no training; loaded by `imports:` as a user's own file would be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from policysmith.builder import BasePolicyModel, DataCollatorRegistry


class ScriptedConfig(PretrainedConfig):  # type: ignore[misc]
    """`behavior` is `expert`, `random`, `count` or `broken`."""

    model_type = "scripted"
    behavior: str = "expert"
    noise: float = 0.0

    def transform(self) -> tuple[None, list[int], list[int]]:
        return None, [0], [0, 1, 2, 3]


@BasePolicyModel.register("scripted")
class ScriptedPolicy(BasePolicyModel):
    """Chunks of 4 actions of size 2, straight towards the goal in the state."""

    config_class = ScriptedConfig

    def __init__(self, config: ScriptedConfig) -> None:
        super().__init__(config)
        self.gain = nn.Parameter(torch.ones(1))
        self.looks: list[dict[str, Any]] = []

    def forward(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        prediction = self.inference(batch)
        return {"loss": prediction.square().mean(), "prediction": prediction}

    def inference(self, batch: Mapping[str, Any], **kwargs: Any) -> Tensor:
        self.looks.append(dict(batch))
        state = batch["observation.state"][:, -1]  # (B, 4)
        steps = torch.arange(4.0)
        if self.config.behavior == "count":
            chunk = (len(self.looks) / 10.0 + steps / 100.0)[None, :, None].expand(len(state), 4, 2)
        elif self.config.behavior == "random":
            chunk = torch.randn(len(state), 4, 2)
        elif self.config.behavior == "broken":
            chunk = torch.full((len(state), 4, 2), float("nan"))
        else:
            far = (state[:, None, 2:] - state[:, None, :2]) / 0.1 - steps[None, :, None] * torch.sign(
                state[:, None, 2:] - state[:, None, :2]
            )
            chunk = far.clamp(-1.0, 1.0)
        return self.gain * chunk + self.config.noise * torch.randn_like(chunk)


@DataCollatorRegistry.register("scripted")
def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack tensors."""
    return {
        key: torch.stack([sample[key] for sample in samples])
        for key, value in samples[0].items()
        if isinstance(value, Tensor)
    }
