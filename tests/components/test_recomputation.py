"""Layers that are computed again: the same numbers, for less memory, and only where that is true."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from policysmith.components.backbones.mlp import MlpBackbone
from policysmith.components.backbones.timm import Timm
from policysmith.components.backbones.vision import Vision
from policysmith.components.backbones.vit import Vit
from policysmith.components.layers.recomputation import recompute
from policysmith.components.pretrained import lora
from policysmith.schemas.errors import SpecError
from policysmith.schemas.part import LoraSection
from policysmith.schemas.specs import Kind, Spec

CAMERA = {"observation.images.a": Spec(Kind.IMAGE, ("B", 1, 3, 32, 32))}
STATE = {"observation.state": Spec(Kind.STATE, ("B", 1, 5))}
CONVNEXT = {"config": {"model_type": "dinov3_convnext", "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}}
IMAGES = {"observation.images.a": torch.randn(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
MADE: dict[str, Any] = {
    "vit": (Vit, {"patch_size": 16, "width": 16, "depth": 3, "heads": 2, "dropout": 0.3}),
    "timm vit": (Timm, {"name": "test_vit", "drop_path": 0.3}),
    "frozen norms": (Timm, {"name": "resnet18", "norm": "frozen"}),
    "group norms": (Timm, {"name": "resnet18", "norm": "group"}),
    "swin": (Timm, {"name": "swin_tiny_patch4_window7_224"}),
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    cls, options = MADE[name]
    return cls(cls.Config(type=cls.__name__.lower(), **options), CAMERA, {}).train()


def step(part: nn.Module) -> tuple[dict[str, torch.Tensor], int, int]:
    """Loss and gradients of a step, the tensors kept for the backward pass, and the layers called during it."""
    calls: list[nn.Module] = []
    hooks = [m.register_forward_pre_hook(lambda m, _: calls.append(m)) for m in part.modules()]
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = part(IMAGES, ("tokens",))["tokens"].values.square().mean()
    values, forward = sum(tensor.numel() for tensor in kept), len(calls)
    loss.backward()
    for hook in hooks:
        hook.remove()
    grads = {name: p.grad for name, p in part.named_parameters() if p.grad is not None}
    return {"loss": loss, **grads}, values, len(calls) - forward


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("adapted", [False, True], ids=["whole", "adapted"])
def test_loss_and_gradients_are_the_same_for_less(name: str, adapted: bool) -> None:
    plain, again = build(name), build(name)
    for part in (plain, again):
        if adapted:
            torch.manual_seed(1)
            lora.adapt(part, LoraSection(rank=2, targets=["*.conv1"] if "norms" in name else None))
            with torch.no_grad():
                for parameter in part.parameters():
                    parameter.add_(0.01 if parameter.requires_grad else 0.0)
    recompute(again)
    (expected, kept, called), (found, kept_again, called_again) = step(plain), step(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    assert (called, called_again > 10) == (0, True)
    assert kept_again < 0.7 * kept


def test_batch_norms_would_count_twice() -> None:
    part = Timm(Timm.Config(type="timm", name="resnet18"), CAMERA, {})
    with pytest.raises(SpecError, match="count every batch twice") as caught:
        recompute(part)
    assert caught.value.field == "gradient_checkpointing"
    assert "`norm: frozen`" in caught.value.help
    lora.adapt(part, LoraSection(rank=2, targets=["*.conv1"]))  # norms that rest do not count
    recompute(part)


@pytest.mark.parametrize(
    "part",
    [
        lambda: MlpBackbone(MlpBackbone.Config(type="mlp"), STATE, {}),  # has no layers of that kind
        lambda: Timm(Timm.Config(type="timm", name="convit_tiny"), CAMERA, {}),  # says no itself
        lambda: Vision(Vision.Config(type="vision", architecture="-"), CAMERA, CONVNEXT),
    ],
    ids=["mlp", "convit", "convnext"],
)
def test_parts_that_cannot_say_so(part: Any) -> None:
    with torch.device("meta"):
        built = part()
    with pytest.raises(SpecError, match="does not support recomputation") as caught:
        recompute(built)
    assert caught.value.field == "gradient_checkpointing"
    assert caught.value.help == "leave `gradient_checkpointing` out"


def test_a_part_of_ones_own_takes_part() -> None:
    class Own(nn.Module):
        on = False

        def set_grad_checkpointing(self, enable: bool) -> None:
            self.on = enable

    part = nn.ModuleDict({"deep": nn.ModuleDict({"own": Own()})})
    recompute(part)
    assert part["deep"]["own"].on
