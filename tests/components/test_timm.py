"""Models of timm: layouts of tokens, norms, and what they refuse; their weights are in test_timm_weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision

from policysmith.components.backbones.timm import Timm
from policysmith.schemas.errors import SpecError

from .timm_models import KEY, build, camera, images


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_resnet", (64, 96)),
        ("test_vit", (64, 96)),
        ("mobilenetv3_small_050", (64, 96)),  # pooled is wider than the map
        ("swin_tiny_patch4_window7_224", (64, 96)),  # channels last; buffers outside the state
        ("eva02_tiny_patch14_224", (56, 70)),  # rotary positions outside the state
        ("vit_small_patch16_dinov3", (64, 96)),  # the same, and register tokens
    ],
)
def test_specs_are_the_shapes_on_cpu_and_meta(name: str, size: tuple[int, int]) -> None:
    inputs = camera(*size)
    config = Timm.Config(type="timm", name=name)
    specs = Timm.specs(config, inputs, {})
    for device in ("meta", "cpu"):
        with torch.device(device), torch.no_grad():
            part = Timm(config, inputs, {}).eval()
            out = part(images(inputs), ("pooled", "tokens"))
        for key, spec in specs.items():
            assert tuple(out[key].values.shape) == (2, *spec.dims[1:])


@pytest.mark.parametrize("name", ["test_resnet", "swin_tiny_patch4_window7_224"])
def test_tokens_are_the_map_row_by_row(name: str) -> None:
    inputs = camera(64, 96)
    part, batch = build(name, inputs), images(inputs)
    with torch.no_grad():
        out = part(batch, ("pooled", "tokens"))
        maps = part.model.forward_features(batch[KEY][:, 0])
    last = maps if name.startswith("swin") else maps.permute(0, 2, 3, 1)  # (B, H, W, D)
    assert last.shape[1:3] == (2, 3)
    assert torch.equal(out["tokens"].values[:, 3 * 1 + 2], last[:, 1, 2])
    torch.testing.assert_close(out["tokens"].values.mean(1), out["pooled"].values)


@pytest.mark.parametrize(
    ("name", "layer", "stride", "width"),
    [
        ("test_resnet", 2, 4, 32),
        ("test_efficientnet", 4, 16, 48),
        ("swin_tiny_patch4_window7_224", 2, 8, 192),
        ("test_vit", 1, 16, 64),
        ("vit_small_patch16_dinov3", 11, 16, 384),
    ],
)
def test_an_earlier_layer_is_a_map_and_its_mean(name: str, layer: int, stride: int, width: int) -> None:
    inputs = camera(64, 96, steps=2)
    part, batch = build(name, inputs, layer=layer), images(inputs)
    specs = Timm.specs(part.config, inputs, {})
    with torch.no_grad():
        out = part(batch, ("pooled", "tokens"))
        _, maps = part.model.forward_intermediates(batch[KEY][:, 1])
    rows, columns = 64 // stride, 96 // stride
    assert specs["tokens"].grid == (2, rows, columns)
    assert specs["tokens"].dims == ("B", 2 * rows * columns, width)
    assert specs["pooled"].dims == ("B", 2 * width)
    second = out["tokens"].values[:, rows * columns :]
    torch.testing.assert_close(second, maps[layer - 1].flatten(2).transpose(1, 2))
    torch.testing.assert_close(out["pooled"].values[:, width:], second.mean(1))


@pytest.mark.parametrize(
    ("name", "options", "field"),
    [
        ("test_resnet", {"layer": 9}, "layer"),
        ("test_vit", {"layer": 1, "prefix_tokens": "keep"}, "prefix_tokens"),
    ],
)
def test_a_layer_that_is_not_there_is_refused(name: str, options: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as refused:
        Timm.specs(Timm.Config(type="timm", name=name, **options), camera(), {})
    assert refused.value.field == field


def test_prefix_tokens_are_dropped_or_kept() -> None:
    inputs = camera(64, 64)
    dropped, kept = (build("test_vit", inputs, prefix_tokens=option) for option in ("drop", "keep"))
    kept.load_state_dict(dropped.state_dict())
    batch = images(inputs)
    with torch.no_grad():
        fewer, more = (part(batch, ("tokens",))["tokens"].values for part in (dropped, kept))
    assert (fewer.shape[1], more.shape[1]) == (16, 17)
    assert torch.equal(more[:, 1:], fewer)


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("test_resnet", (64, 96), (2, 3)),
        ("swin_tiny_patch4_window7_224", (64, 96), (2, 3)),
        ("test_vit", (64, 96), (4, 6)),
        ("vit_small_patch16_dinov3", (64, 96), (4, 6)),
        ("mixer_s16_224", (64, 96), (4, 6)),
        ("levit_128s", (64, 96), None),  # its last sequence is no longer of patches
    ],
)
def test_tokens_tell_the_map_that_they_are(
    name: str, size: tuple[int, int], grid: tuple[int, int] | None
) -> None:
    inputs = camera(*size, steps=2)
    config = Timm.Config(type="timm", name=name)
    assert Timm.specs(config, inputs, {})["tokens"].grid == (None if grid is None else (2, *grid))
    kept = Timm.specs(config.model_copy(update={"prefix_tokens": "keep"}), inputs, {})["tokens"]
    assert (kept.grid is None) == (grid is None or name in ("test_vit", "vit_small_patch16_dinov3"))


def test_patches_are_the_grid_row_by_row() -> None:
    """The token of a changed patch changes most, before attention mixes the tokens."""
    inputs = camera(64, 96)
    part, batch = build("test_vit", inputs), images(inputs)
    part.model.blocks = torch.nn.Identity()
    (_, rows, columns), row, column = Timm.specs(part.config, inputs, {})["tokens"].grid or (0, 0, 0), 2, 5
    changed = {KEY: batch[KEY].clone()}
    changed[KEY][..., 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 1.0
    with torch.no_grad():
        before, after = (part(b, ("tokens",))["tokens"].values for b in (batch, changed))
    (different,) = (before != after).any(-1)[0].nonzero(as_tuple=True)
    assert (rows, columns) == (4, 6)
    assert different.tolist() == [row * columns + column]


def test_drop_path_acts_only_in_training() -> None:
    inputs = camera()
    part, batch = build("test_vit", inputs, drop_path=0.5), images(inputs)
    once, twice = (part(batch, ("pooled",))["pooled"].values for _ in range(2))
    assert torch.equal(once, twice)
    part.train()
    once, twice = (part(batch, ("pooled",))["pooled"].values for _ in range(2))
    assert not torch.equal(once, twice)


# --- norms -------------------------------------------------------------------------------------------------------


def torchvision_resnet18(norm_layer: Any = None) -> Any:
    """Return torchvision's model, with statistics that are not the initial ones."""
    model = torchvision.models.resnet18(norm_layer=norm_layer).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                value += (
                    0.05 * torch.rand_like(value) if key.endswith("var") else 0.05 * torch.randn_like(value)
                )
    return model


def group_norm(channels: int) -> torch.nn.GroupNorm:
    """Return the layer of Diffusion Policy's image encoder."""
    return torch.nn.GroupNorm(num_groups=channels // 16, num_channels=channels)


@pytest.mark.parametrize(
    ("norm", "norm_layer"),
    [("batch", None), ("frozen", torchvision.ops.FrozenBatchNorm2d), ("group", group_norm)],
)
def test_a_resnet_is_torchvisions_under_the_same_names(norm: str, norm_layer: Any) -> None:
    reference = torchvision_resnet18(norm_layer)
    state = {key: value for key, value in reference.state_dict().items() if not key.startswith("fc.")}
    inputs = camera(64, 96)
    part, batch = build("resnet18", inputs, norm=norm), images(inputs)
    part.model.load_state_dict(state, strict=True)
    names = {name for name, _ in reference.named_parameters() if not name.startswith("fc.")}
    assert {name for name, _ in part.model.named_parameters()} == names
    with torch.no_grad():
        x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(batch[KEY][:, 0]))))
        maps = reference.layer4(reference.layer3(reference.layer2(reference.layer1(x))))
        out = part(batch, ("tokens", "pooled"))
    assert torch.equal(out["tokens"].values, maps.flatten(2).transpose(1, 2))
    assert torch.equal(out["pooled"].values, reference.avgpool(maps).flatten(1))


@pytest.mark.parametrize(
    "name", ["resnet18", "test_efficientnet"]
)  # norms alone, and with an activation inside
def test_frozen_norms_neither_train_nor_follow_the_data(name: str, tmp_path: Path) -> None:
    source = timm.create_model(name)
    with torch.no_grad():
        for buffer in source.buffers():
            buffer += 1
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    weights = str(tmp_path / "weights.pth")
    options = {"pretrained": weights, "positions": "interpolate"}
    inputs = camera()
    frozen, plain = build(name, inputs, norm="frozen", **options), build(name, inputs, **options)
    batch = images(inputs, 4)
    before = {key: value.clone() for key, value in frozen.model.state_dict().items()}
    frozen.train()
    out = frozen(batch, ("tokens",))["tokens"].values
    out.square().mean().backward()
    torch.testing.assert_close(out, plain(batch, ("tokens",))["tokens"].values)
    assert all(torch.equal(value, before[key]) for key, value in frozen.model.state_dict().items())
    norms = [key for key, _ in plain.model.named_parameters() if "bn" in key]
    assert norms
    assert {key for key, _ in frozen.model.named_parameters()}.isdisjoint(norms)
    for key in norms:
        assert torch.equal(before[key], source.state_dict()[key])


def test_group_norms_keep_the_activations_that_stand_in_the_norm() -> None:
    part, plain = build("test_efficientnet", norm="group"), build("test_efficientnet")
    kinds = [
        [type(m) for m in p.modules() if type(m).__module__.endswith("activation")] for p in (part, plain)
    ]
    assert kinds[0] == kinds[1] != []
    assert not [m for m in part.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    norm = part.model.bn1
    values = torch.randn(2, norm.num_channels, 3, 3)
    expected = torch.nn.functional.group_norm(values, norm.num_channels // 16, norm.weight, norm.bias)
    assert torch.equal(norm(values), plain.model.bn1.act(expected))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("test_vit", {"norm": "frozen"}, "has no batch norm"),
        ("test_vit", {"norm": "group"}, "has no batch norm"),
        ("levit_128s", {"norm": "frozen"}, "BatchNorm1d"),
        ("mobilenetv3_small_050", {"norm": "group"}, "8 channels do not divide into groups of 16"),
        ("resnet18", {"norm": "group", "pretrained": "timm/resnet18.a1_in1k"}, "made for batch norms"),
    ],
)
def test_norms_that_cannot_be(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        Timm.specs(Timm.Config(type="timm", name=name, **options), camera(), {})
    assert caught.value.field == "norm"
    assert caught.value.help


# --- errors ------------------------------------------------------------------------------------------------------


def test_unknown_models_are_named_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="no model `resnet81`") as caught:
        build("resnet81")
    assert caught.value.field == "name"
    assert "did you mean `resnet" in caught.value.help
    with pytest.raises(SpecError, match="no model"):
        build("hf-hub:timm/resnet18.a1_in1k")


def test_models_without_a_single_map_are_refused() -> None:
    with pytest.raises(SpecError, match="no single feature map") as caught:
        build("coat_tiny", camera(224, 224))
    assert caught.value.field == "name"


def test_sizes_that_a_model_cannot_read() -> None:
    with pytest.raises(SpecError, match="`maxvit_pico_rw_256` cannot read images of 50 x 50"):
        build("maxvit_pico_rw_256", camera(50, 50))
