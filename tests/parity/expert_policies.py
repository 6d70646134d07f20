"""Policies with a vision-language model and an expert, built from a recipe that a converter made, in a golden's world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from policysmith.builder.recipe.load import load_recipe
from policysmith.components.base import Feature
from policysmith.components.heads.flow_matching import FlowMatching
from policysmith.components.registry import BACKBONES
from policysmith.schemas.specs import Kind, Spec

from .golden import Golden, digest


def resolved(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole recipe for the sections of a converter, with all defaults."""
    whole = {"recipe": 1, "name": "converted", **sections, "data": {"path": "anywhere", **sections["data"]}}
    return load_recipe(whole).resolved()


class Policy(nn.Module):
    """Backbones and head of a resolved recipe, with the names of weights that a policy has."""

    def __init__(self, recipe: Mapping[str, Any], golden: Golden) -> None:
        super().__init__()
        self.golden, self.inputs = golden, golden.inputs
        sizes = golden.config
        self.width = sizes["max_action_dim"]
        self.observations = self._observations()
        specs = {
            "observation.state": Spec(Kind.STATE, ("B", 1, sizes["max_state_dim"])),
            "task.input_ids": Spec(Kind.TOKEN_IDS, ("B", self.inputs["tokens"].shape[1]), vocab=64),
            **{key: Spec(Kind.IMAGE, ("B", 1, *sizes["image"])) for key in self.cameras},
        }
        self.backbones, published = nn.ModuleDict(), {}
        for name, given in recipe["policy"]["backbones"].items():
            part: Any = BACKBONES.get(given["type"])
            config = part.Config.model_validate(given)
            read, facts = part.reads(config, specs), part.facts(config)
            published |= {f"{name}.{key}": spec for key, spec in part.specs(config, read, facts).items()}
            self.backbones[name] = part(config, read, facts)
        config = FlowMatching.Config.model_validate(recipe["policy"]["head"])
        self.reads = tuple(config.reads or ())
        features = {key: published[key] for key in self.reads}
        features["action"] = Spec(Kind.ACTION, ("B", recipe["data"]["horizon"], self.width))
        FlowMatching.specs(config, features, {})
        self.head = FlowMatching(config, features, {})

    @property
    def cameras(self) -> list[str]:
        return [key for key in self.inputs if key.startswith("observation.images.")]

    def _observations(self) -> dict[str, Tensor]:
        shown = self.inputs["image_mask"]
        return {
            "observation.state": self._padded(
                self.inputs["observation.state"], self.golden.config["max_state_dim"]
            )[:, None],
            "task.input_ids": self.inputs["tokens"],
            "task.attention_mask": self.inputs["token_mask"].long(),
            **{key: self.inputs[key][:, None] for key in self.cameras},
            **{f"{key}_is_pad": ~shown[:, index, None] for index, key in enumerate(self.cameras)},
        }

    @staticmethod
    def _padded(values: Tensor, width: int) -> Tensor:
        return nn.functional.pad(values, (0, width - values.shape[-1]))

    def features(self) -> dict[str, Feature]:
        found = {}
        for name, backbone in self.backbones.items():
            outputs = [key.partition(".")[2] for key in self.reads if key.startswith(f"{name}.")]
            found |= {f"{name}.{key}": value for key, value in backbone(self.observations, outputs).items()}
        absent = torch.arange(self.width) >= self.inputs["action"].shape[-1]
        found["action_dim_is_pad"] = Feature(absent.expand(len(self.inputs["action"]), -1))
        return found

    @property
    def actions(self) -> Tensor:
        return self._padded(self.inputs["action"], self.width)

    def padding(self, steps: bool) -> Tensor:
        """(B, H, A): dimensions that the robot does not have and, where asked for, steps after the end."""
        is_pad = torch.zeros(self.actions.shape, dtype=torch.bool)
        is_pad[..., self.inputs["action"].shape[-1] :] = True
        return is_pad | self.inputs["action_is_pad"][..., None] if steps else is_pad

    def loss(self, is_pad: Tensor) -> Tensor:
        """Return the head's loss with the golden's noise and levels, without values at is_pad (B, H, A)."""
        drawn = (self.golden.draws["time"], self.golden.draws["noise"])
        with mock.patch.object(self.head, "draw", return_value=drawn):
            loss: Tensor = self.head.loss(self.features(), self.actions, is_pad)["loss"]
        return loss

    def velocity(self) -> Tensor:
        """Return the network's predictions at the golden's noise and levels, with padding visible."""
        level, noise = self.golden.draws["time"], self.golden.draws["noise"]
        at = level[:, None, None]
        found: Tensor = self.head.network(
            at * noise + (1.0 - at) * self.actions, level, self.head.network.encode(self.features())
        )
        return found

    def sample(self) -> tuple[Tensor, Tensor]:
        """Return the sample (B, H, A) from the golden's noise, and the velocities (steps, B, H, A)."""
        start, theirs = self.golden.draws["sampling_noise"], self.golden.outputs["step_velocities"]
        with mock.patch.object(torch, "randn", return_value=start):
            sample = self.head.sample(self.features())
        with torch.no_grad():
            context = self.head.network.encode(self.features())
            places = [start - theirs[:step].sum(0) / len(theirs) for step in range(len(theirs))]
            steps = [
                self.head.network(place, torch.full((len(place),), 1.0 - step / len(theirs)), context)
                for step, place in enumerate(places)
            ]
        return sample, torch.stack(steps)


def gradients_of(policy: nn.Module) -> dict[str, Tensor]:
    """By weight, the gradient that `backward` left."""
    return {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in policy.named_parameters()
    }


def differences(gradients: Mapping[str, Tensor], golden: Golden) -> dict[str, float]:
    """By weight that both have, how far our gradient is from the golden's, relative to its norm or to a thousandth of the largest."""
    least = max(expected.norm() for expected in golden.gradients.values()) / 1e3
    return {
        key: ((digest(key, gradients[key]) - expected).norm() / torch.maximum(expected.norm(), least)).item()
        for key, expected in golden.gradients.items()
        if key in gradients
    }
