"""Vision encoders of transformers against themselves, each from a small local checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from policysmith.components.backbones.vision import Vision, patches
from policysmith.components.images.specs import IMAGE_STATISTICS
from policysmith.components.transforms.normalize_image import NormalizeImage
from policysmith.schemas.errors import SpecError, WeightsError
from policysmith.schemas.specs import Kind, Spec

KEY = "observation.images.a"
DEPTH: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
SIDE: dict[str, Any] = {**DEPTH, "image_size": 32, "patch_size": 8}
TEXT: dict[str, Any] = {**DEPTH, "vocab_size": 9}
MADE: dict[str, tuple[Any, Any, Any]] = {  # config, the class that is saved, the class that is the reference
    "vit": (ViTConfig(**SIDE), ViTForImageClassification, ViTModel),
    "clip": (CLIPVisionConfig(**SIDE), CLIPVisionModel, CLIPVisionModel),
    "clip_whole": (CLIPConfig(vision_config=SIDE, text_config=TEXT), CLIPModel, CLIPVisionModel),
    "siglip": (SiglipVisionConfig(**SIDE), SiglipVisionModel, SiglipVisionModel),
    "siglip_whole": (SiglipConfig(vision_config=SIDE, text_config=TEXT), SiglipModel, SiglipVisionModel),
    "siglip2": (
        Siglip2VisionConfig(**DEPTH, patch_size=8, num_patches=16),
        Siglip2VisionModel,
        Siglip2VisionModel,
    ),
    "siglip2_whole": (
        Siglip2Config(vision_config={**DEPTH, "patch_size": 8, "num_patches": 16}, text_config=TEXT),
        Siglip2Model,
        Siglip2VisionModel,
    ),
    "dinov2": (Dinov2Config(**SIDE), Dinov2Model, Dinov2Model),
    "dinov2_registers": (
        Dinov2WithRegistersConfig(**SIDE, num_register_tokens=3),
        Dinov2WithRegistersModel,
        Dinov2WithRegistersModel,
    ),
    "dinov3": (DINOv3ViTConfig(**SIDE, num_register_tokens=3), DINOv3ViTModel, DINOv3ViTModel),
    "dinov3_convnext": (
        DINOv3ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1]),
        DINOv3ConvNextModel,
        DINOv3ConvNextModel,
    ),
}
PREFIX = {"vit": 1, "clip": 1, "siglip": 0, "siglip2": 0, "dinov2": 1, "dinov2_registers": 4, "dinov3": 4}


def camera(height: int = 32, width: int = 32, steps: int = 1, **options: Any) -> dict[str, Spec]:
    return {KEY: Spec(Kind.IMAGE, ("B", steps, 3, height, width), **options)}


def save(name: str, directory: Path) -> str:
    config, saved, _ = MADE[name]
    torch.manual_seed(1)
    model: PreTrainedModel = saved(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(directory / name)
    return str(directory / name)


def build(inputs: dict[str, Spec], **options: Any) -> Vision:
    config = Vision.Config(type="vision", **options)
    facts = json.loads(json.dumps(Vision.facts(config)))
    Vision.specs(config, inputs, facts)
    part = Vision(config, inputs, facts)
    part.load_pretrained()
    return part.eval()


def reference(name: str, source: str, images: torch.Tensor, **options: Any) -> Any:
    """Run transformers' own model on the images, loaded by its own code."""
    extra = {"add_pooling_layer": False} if name == "vit" else {}
    model = MADE[name][2].from_pretrained(source, **extra).eval()
    if name.startswith("siglip2"):
        grid = (images.shape[2] // 8, images.shape[3] // 8)
        options = {
            "pixel_attention_mask": torch.ones(len(images), grid[0] * grid[1], dtype=torch.long),
            "spatial_shapes": torch.tensor([grid] * len(images)),
        }
        images = patches(images, 8)
    with torch.no_grad():
        return model(pixel_values=images, **options)


@pytest.mark.parametrize("name", MADE)
def test_a_checkpoint_gives_what_transformers_gives(name: str, tmp_path: Path) -> None:
    source, inputs = save(name, tmp_path), camera(steps=2)
    part = build(inputs, pretrained=source)
    images = torch.randn(2, 2, 3, 32, 32)
    with torch.no_grad():
        out = part({KEY: images}, ("pooled", "tokens"))
    expected = reference(name, source, images.flatten(0, 1))
    prefix = PREFIX.get(name.removesuffix("_whole"), 1)
    hidden = expected.last_hidden_state
    pooled = hidden[:, 0] if name == "vit" else expected.pooler_output
    assert torch.equal(out["tokens"].values, hidden[:, prefix:].reshape(2, -1, hidden.shape[-1]))
    assert torch.equal(out["pooled"].values, pooled.reshape(2, -1))
    specs = Vision.specs(part.config, inputs, Vision.facts(part.config))
    side = 1 if name == "dinov3_convnext" else 4
    assert specs["tokens"].grid == (2, side, side)
    assert tuple(out["tokens"].values.shape[1:]) == specs["tokens"].dims[1:]
    assert tuple(out["pooled"].values.shape[1:]) == specs["pooled"].dims[1:]


@pytest.mark.parametrize("name", [name for name in MADE if not name.endswith("whole")])
def test_other_sizes_are_interpolated_as_transformers_does(name: str, tmp_path: Path) -> None:
    source, side = save(name, tmp_path), 32 if name == "dinov3_convnext" else 8
    inputs = camera(2 * side, 3 * side)
    part = build(inputs, pretrained=source, positions="interpolate")
    images = torch.randn(2, 1, 3, 2 * side, 3 * side)
    asked = {"interpolate_pos_encoding": True} if name in ("vit", "clip", "siglip") else {}
    with torch.no_grad():
        out = part({KEY: images}, ("tokens",))["tokens"].values
    expected = reference(name, source, images[:, 0], **asked).last_hidden_state
    torch.testing.assert_close(out, expected[:, PREFIX.get(name, 1) :], atol=1e-6, rtol=1e-6)
    assert Vision.specs(part.config, inputs, Vision.facts(part.config))["tokens"].grid == (1, 2, 3)
    meta = images.to("meta")
    with torch.device("meta"), torch.no_grad():
        blank = Vision(part.config, inputs, Vision.facts(part.config))({KEY: meta}, ("tokens",))
    assert blank["tokens"].values.shape == out.shape


@pytest.mark.parametrize("name", ["vit", "clip", "siglip", "siglip2", "dinov2", "dinov2_registers"])
def test_another_size_needs_a_word(name: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="reads images of 32 x 32, not 16 x 24") as caught:
        build(camera(16, 24), pretrained=save(name, tmp_path))
    assert caught.value.source == KEY
    assert "{type: resize, size: 32}" in caught.value.help
    assert "positions: interpolate" in caught.value.help


def test_images_are_cut_without_rest(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="30 x 32 cannot be cut into patches of 8") as caught:
        build(camera(30, 32), pretrained=save("dinov3", tmp_path))
    assert "multiple of 8" in caught.value.help


def test_patches_are_those_of_the_image_processor() -> None:
    pixels = torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8)
    processor = Siglip2ImageProcessorPil(patch_size=8, do_resize=False, do_normalize=False, max_num_patches=6)
    expected = processor(pixels, return_tensors="pt")["pixel_values"]
    assert expected.shape == (1, 6, 8 * 8 * 3)
    torch.testing.assert_close(patches(pixels[None] / 255.0, 8), expected)


def test_pooling(tmp_path: Path) -> None:
    source, images = save("clip", tmp_path), torch.randn(2, 1, 3, 32, 32)
    expected = reference("clip", source, images[:, 0])
    hidden = expected.last_hidden_state
    wanted = {"model": expected.pooler_output, "class": hidden[:, 0], "mean": hidden[:, 1:].mean(1)}
    for pooling, values in wanted.items():
        with torch.no_grad():
            out = build(camera(), pretrained=source, pooling=pooling)({KEY: images}, ("pooled",))
        assert torch.equal(out["pooled"].values, values)
    with pytest.raises(SpecError, match="has no class token") as caught:
        build(camera(), pretrained=save("siglip", tmp_path), pooling="class")
    assert caught.value.field == "pooling"
    headless = SiglipVisionConfig(**SIDE, vision_use_head=False)
    SiglipVisionModel(headless).save_pretrained(tmp_path / "headless")
    with pytest.raises(SpecError, match="has no pooling of its own") as caught:
        build(camera(), pretrained=str(tmp_path / "headless"))
    assert caught.value.help == "set `pooling: mean`"
    build(camera(), pretrained=str(tmp_path / "headless"), pooling="mean")


def test_an_architecture_has_random_weights(tmp_path: Path) -> None:
    source = save("siglip", tmp_path)
    torch.manual_seed(7)
    part, images = build(camera(), architecture=source), torch.randn(1, 1, 3, 32, 32)
    assert not torch.equal(
        part.model.state_dict()["post_layernorm.weight"],
        build(camera(), pretrained=source).model.state_dict()["post_layernorm.weight"],
    )
    torch.manual_seed(7)
    again = build(camera(), architecture=source)
    out = [p({KEY: images}, ("pooled",))["pooled"].values for p in (part, again)]
    assert torch.equal(*out)
    for given in ({}, {"pretrained": source, "architecture": source}):
        with pytest.raises(SpecError, match=r"both set|needs a model"):
            build(camera(), **given)


def test_positions_of_dinov3_rest_while_training(tmp_path: Path) -> None:
    part, images = build(camera(), pretrained=save("dinov3", tmp_path)), torch.randn(1, 1, 3, 32, 32)
    resting = part({KEY: images}, ("tokens",))["tokens"].values
    assert torch.equal(part.train()({KEY: images}, ("tokens",))["tokens"].values, resting)


# --- normalization -----------------------------------------------------------------------------------------------


def processor(directory: str, **held: Any) -> None:
    text = {"image_processor_type": "SiglipImageProcessor", **held}
    (Path(directory) / "preprocessor_config.json").write_text(json.dumps(text))


def normalized(**options: Any) -> dict[str, Spec]:
    transform = NormalizeImage.Config(type="normalize_image", **options)
    return NormalizeImage.specs(transform, camera(), {})


def test_images_must_be_normalized_as_the_model_was_trained(tmp_path: Path) -> None:
    source = save("siglip", tmp_path)
    processor(source, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    build(normalized(stats="half"), pretrained=source)
    build(normalized(mean=[0.5001] * 3, std=[0.5] * 3), pretrained=source)
    build(camera(), pretrained=source)  # nothing is known of the images
    build(normalized(stats="imagenet"), architecture=source)  # random weights know no images
    for options in ({"stats": "imagenet"}, {"stats": "zero_one"}, {"mean": [0.5] * 3, "std": [0.25] * 3}):
        with pytest.raises(SpecError, match="was trained on images normalized by mean") as caught:
            build(normalized(**options), pretrained=source)
        assert caught.value.source == KEY
        assert caught.value.help == "use `{type: normalize_image, stats: half}`"


@pytest.mark.parametrize("name", IMAGE_STATISTICS)
def test_the_cure_names_the_statistics(name: str, tmp_path: Path) -> None:
    source, (mean, std) = save("clip", tmp_path), IMAGE_STATISTICS[name]
    processor(source, image_mean=mean, image_std=std)
    with pytest.raises(SpecError) as caught:
        build(normalized(mean=[0.1] * 3, std=[0.9] * 3), pretrained=source)
    assert f"stats: {name}" in caught.value.help
    processor(source, image_mean=[0.1, 0.2, 0.3], image_std=std)
    with pytest.raises(SpecError) as caught:
        build(normalized(stats="half"), pretrained=source)
    assert f"mean: [0.1, 0.2, 0.3], std: {std}" in caught.value.help


def test_a_model_that_is_not_normalized(tmp_path: Path) -> None:
    source = save("clip", tmp_path)
    processor(source, do_normalize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    build(normalized(stats="zero_one"), pretrained=source)
    with pytest.raises(SpecError):
        build(normalized(stats="half"), pretrained=source)
    processor(source)
    build(normalized(stats="half"), pretrained=source)


# --- faults ------------------------------------------------------------------------------------------------------


def test_other_models_are_refused(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(WeightsError, match=r"is a `bert` model, expected one of .*siglip_vision_model"):
        build(camera(), pretrained=str(tmp_path / "bert"))
    with pytest.raises(WeightsError, match="cannot read the config"):
        build(camera(), pretrained=str(tmp_path / "nothing"))


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    source = save("clip", tmp_path)
    config = json.loads((Path(source) / "config.json").read_text())
    (Path(source) / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(
        WeightsError, match=r"lacks 16 tensors of CLIPVisionModel, the first is `encoder\.layers\.2"
    ):
        build(camera(), pretrained=source)
