"""A policy written as a newcomer would: a config, a model, a collator, and the lines that register them.

It lives outside the package and is named under `imports:` of a recipe.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, ViTConfig, ViTModel

from policysmith.builder import BasePolicyModel, DataCollatorRegistry


class CustomPolicyConfig(PretrainedConfig):
    """Hyper-parameters, as plain class attributes."""

    model_type = "custom_model"

    vit_name = "google/vit-base-patch16-224-in21k"
    freeze_vit = True
    hidden_dim = 256
    output_dim = 4
    dropout = 0.0
    n_obs_steps = 1
    horizon = 4

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for key, value in kwargs.items():
            setattr(self, key, value)

    def transform(self) -> tuple[Any, list[int], list[int]]:
        transforms = None
        return transforms, list(range(self.n_obs_steps)), list(range(self.horizon))


@BasePolicyModel.register("custom_model")
class CustomPolicyModel(BasePolicyModel):
    """A pretrained ViT and a two-layer MLP that predicts an action chunk."""

    config_class = CustomPolicyConfig
    name = "custom_model"

    def __init__(self, config: CustomPolicyConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config)
        self.config = config
        sizes = ViTConfig.from_pretrained(config.vit_name)
        self.vit = ViTModel.from_pretrained(config.vit_name, config=sizes)
        if config.freeze_vit:
            for parameter in self.vit.parameters():
                parameter.requires_grad = False
        self.mlp = nn.Sequential(
            nn.Linear(sizes.hidden_size, config.hidden_dim),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden_dim, config.horizon * config.output_dim),
        )

    def forward(self, batch: Any, noise: Any = None, time: Any = None) -> dict[str, torch.Tensor]:
        images, target = batch["images"], batch.get("actions")
        features = self.vit(images).last_hidden_state[:, 0]
        prediction = self.mlp(features).unflatten(1, (self.config.horizon, self.config.output_dim))
        output = {"prediction": prediction}
        if self.training and target is not None:
            output["loss"] = F.mse_loss(prediction, target.view_as(prediction))
        return output

    def inference(self, batch: Any, **kwargs: Any) -> torch.Tensor:
        return self.forward(batch, noise=None, time=None)["prediction"]


@DataCollatorRegistry.register(CustomPolicyConfig.model_type)
def custom_data_collator(samples: Any) -> dict[str, torch.Tensor]:
    images = torch.stack([s["observation.images.corner2"][-1] for s in samples])
    actions = torch.stack([s["action"] for s in samples])
    return {"images": images, "actions": actions}


AutoConfig.register("custom_model", CustomPolicyConfig)
AutoModel.register(CustomPolicyConfig, CustomPolicyModel)
