"""The Vision Transformer against transformers' own, from a small local checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, ViTConfig, ViTForImageClassification, ViTModel

from policysmith.components.backbones.vit import Vit
from policysmith.schemas.errors import SpecError, WeightsError
from policysmith.schemas.specs import Kind, Spec

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}


def cameras(height: int = 32, width: int = 32, steps: int = 1, names: str = "a") -> dict[str, Spec]:
    return {f"observation.images.{name}": Spec(Kind.IMAGE, ("B", steps, 3, height, width)) for name in names}


def build(inputs: dict[str, Spec], **options: Any) -> Vit:
    config = Vit.Config(type="vit", **options)
    facts = Vit.facts(config)
    Vit.specs(config, inputs, facts)
    part = Vit(config, inputs, facts)
    part.load_pretrained()
    return part.eval()


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """Save a classifier, as most published models are."""
    config = ViTConfig(image_size=32, patch_size=8, num_labels=5, layer_norm_eps=1e-3, **SIZES)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    return str(tmp_path / "vit")


def test_pretrained_gives_what_transformers_gives(checkpoint: str) -> None:
    inputs = cameras()
    part = build(inputs, pretrained=checkpoint)
    reference = ViTModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()
    images = torch.randn(2, 1, 3, 32, 32)
    out = part({"observation.images.a": images}, ("pooled", "tokens"))
    hidden = reference(pixel_values=images[:, 0]).last_hidden_state
    assert torch.equal(out["pooled"].values, hidden[:, 0])
    assert torch.equal(out["tokens"].values, hidden[:, 1:])


def test_pretrained_weights_come_only_when_asked_for(checkpoint: str) -> None:
    config = Vit.Config(type="vit", pretrained=checkpoint)
    part = Vit(config, cameras(), Vit.facts(config))
    before = part.model.embeddings.position_embeddings.clone()
    part.load_pretrained()
    assert not torch.equal(before, part.model.embeddings.position_embeddings)


def test_steps_and_cameras_keep_their_order() -> None:
    inputs = cameras(steps=2, names="ab")
    part = build(inputs, patch_size=16, width=12, depth=1, heads=2)
    batch = {key: torch.randn(3, 2, 3, 32, 32) for key in inputs}
    out = part(batch, ("pooled", "tokens"))
    assert out["pooled"].values.shape == (3, 2 * 2 * 12)
    assert out["tokens"].values.shape == (3, 2 * 2 * 4, 12)
    for place, (step, key) in enumerate((step, key) for step in range(2) for key in inputs):
        hidden = part.model(pixel_values=batch[key][:, step]).last_hidden_state
        torch.testing.assert_close(out["pooled"].values[:, 12 * place : 12 * place + 12], hidden[:, 0])
        torch.testing.assert_close(out["tokens"].values[:, 4 * place : 4 * place + 4], hidden[:, 1:])


def test_images_need_not_be_square() -> None:
    inputs = cameras(16, 24)
    part = build(inputs, patch_size=8, width=12, depth=1, heads=2)
    assert part({"observation.images.a": torch.randn(1, 1, 3, 16, 24)}, ("tokens",))[
        "tokens"
    ].values.shape == (1, 6, 12)


def test_images_of_another_size_name_the_cure(checkpoint: str) -> None:
    with pytest.raises(SpecError, match="reads images of 32 x 32, not 48 x 48") as caught:
        build(cameras(48, 48), pretrained=checkpoint)
    assert (caught.value.field, caught.value.source) == ("pretrained", "observation.images.a")
    assert "{type: resize, size: 32}" in caught.value.help
    assert "positions: interpolate" in caught.value.help


def test_positions_are_interpolated_when_told(checkpoint: str) -> None:
    inputs = cameras(48, 40)
    part = build(inputs, pretrained=checkpoint, positions="interpolate")
    reference = ViTModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()
    images = torch.randn(2, 1, 3, 48, 40)
    hidden = reference(pixel_values=images[:, 0], interpolate_pos_encoding=True).last_hidden_state
    out = part({"observation.images.a": images}, ("tokens",))["tokens"].values
    assert torch.equal(out, hidden[:, 1:])
    assert Vit.specs(part.config, inputs, Vit.facts(part.config))["tokens"].dims == ("B", 30, 16)


@pytest.mark.parametrize(
    ("name", "value", "held"),
    [("patch_size", 4, 8), ("width", 32, 16), ("depth", 3, 2), ("heads", 4, 2), ("mlp_ratio", 4.0, 2.5)],
)
def test_sizes_that_contradict_the_pretrained_model(
    checkpoint: str, name: str, value: Any, held: Any
) -> None:
    with pytest.raises(SpecError, match=f"`{name}` is {value}") as caught:
        build(cameras(), pretrained=checkpoint, **{name: value})
    assert caught.value.field == name
    assert f"has {held}" in caught.value.label
    build(cameras(), pretrained=checkpoint, **{name: held})


def test_patches_must_fit() -> None:
    with pytest.raises(SpecError, match="30 x 32 cannot be cut into patches of 16") as caught:
        build(cameras(30, 32))
    assert caught.value.field == "patch_size"
    with pytest.raises(SpecError, match="width of 20 cannot be shared by 3 heads"):
        build(cameras(), width=20)


def test_cameras_must_share_a_size() -> None:
    inputs = {**cameras(), **cameras(64, 64, names="b")}
    with pytest.raises(SpecError, match="cameras of one size") as caught:
        build(inputs)
    assert caught.value.source == "observation.images.b"
    assert "resize" in caught.value.help
    build(inputs, reads=["observation.images.b"])


def test_bytes_are_refused() -> None:
    part = build(cameras(), depth=1)
    with pytest.raises(SpecError, match="normalize_image"):
        part({"observation.images.a": torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8)}, ("pooled",))


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="is a `bert` model"):
        Vit.facts(Vit.Config(type="vit", pretrained=str(tmp_path)))


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot read the config of"):
        Vit.facts(Vit.Config(type="vit", pretrained=str(tmp_path / "nowhere")))


def test_missing_and_misshapen_tensors_are_named(checkpoint: str) -> None:
    file = Path(checkpoint) / "model.safetensors"
    whole = load_file(file)
    name = next(key for key in whole if "layernorm_before.weight" in key or "norm1.weight" in key)
    save_file({key: value for key, value in whole.items() if key != name}, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="lacks 1 tensors of ViTModel"):
        build(cameras(), pretrained=checkpoint)
    save_file({**whole, name: torch.zeros(3)}, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="cannot load the weights of"):
        build(cameras(), pretrained=checkpoint)


def test_loading_says_nothing(checkpoint: str, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    build(cameras(), pretrained=checkpoint)
    assert capfd.readouterr() == ("", "")
