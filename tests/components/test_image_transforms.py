"""Image transforms against independent references: PIL, torchvision, numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from policysmith.components.registry import TRANSFORMS
from policysmith.components.transforms import color_jitter
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Spec

KEY = "observation.images.front"


def make(name: str, shape: tuple[int, int] = (24, 32), **options: Any) -> Any:
    part = TRANSFORMS.get(name)
    inputs = {KEY: Spec(Kind.IMAGE, ("B", 2, 3, *shape))}
    config = part.Config(type=name, **options)
    part.specs(config, inputs, {})
    return part(config, inputs, {})


def pictures(size: int = 4, shape: tuple[int, int] = (24, 32)) -> Tensor:
    return torch.randint(0, 256, (size, 2, 3, *shape), dtype=torch.uint8)


def coordinates(size: int, shape: tuple[int, int]) -> Tensor:
    """Images (B, 1, 3, H, W) whose pixels hold their own row, column and sample."""
    rows, columns = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    samples = torch.arange(size)[:, None, None].expand(size, *shape)
    return torch.stack([rows.expand(size, *shape), columns.expand(size, *shape), samples], dim=1)[
        :, None
    ].float()


# --- resize ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(12, 16), (9, 31), (48, 40)])
def test_resize_agrees_with_pillow(size: tuple[int, int]) -> None:
    images = pictures()
    ours = make("resize", size=list(size))({KEY: images})[KEY]
    assert ours.dtype == torch.uint8
    for index in range(4):
        picture = Image.fromarray(images[index, 1].permute(1, 2, 0).numpy())
        theirs = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(ours[index, 1].permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 1


def test_resize_of_floats_agrees_with_torchvision_and_with_bytes() -> None:
    images = pictures()
    part = make("resize", size=[10, 14])
    floats = part({KEY: images / 255.0})[KEY]
    torch.testing.assert_close(floats, reference.resize(images / 255.0, [10, 14], antialias=True))
    assert (part({KEY: images})[KEY] / 255.0 - floats).abs().max() <= 1.01 / 255.0


def test_resize_to_the_same_size_changes_nothing() -> None:
    images = pictures()
    assert torch.equal(make("resize", size=[24, 32])({KEY: images})[KEY], images)
    assert make("resize", shape=(9, 9), size=6)({KEY: pictures(shape=(9, 9))})[KEY].shape[-2:] == (6, 6)


# --- crop --------------------------------------------------------------------------------------------------------


def test_crop_takes_the_centre_in_evaluation() -> None:
    images = pictures()
    ours = make("crop", size=[10, 13]).eval()({KEY: images})[KEY]
    theirs = reference.center_crop(images, [10, 12])
    assert torch.equal(ours[..., :12], images[..., 7:17, 9:21])
    assert torch.equal(make("crop", size=[10, 12]).eval()({KEY: images})[KEY], theirs)


def test_random_crops_are_windows_at_every_place() -> None:
    images = coordinates(600, (6, 7))
    crops = make("crop", shape=(6, 7), size=[4, 4]).train()({KEY: images})[KEY][:, 0]  # (B, 3, 4, 4)
    tops, lefts = crops[:, 0, 0, 0], crops[:, 1, 0, 0]
    assert torch.equal(crops[:, 0], tops[:, None, None] + torch.arange(4.0)[:, None].expand(4, 4))
    assert torch.equal(crops[:, 1], lefts[:, None, None] + torch.arange(4.0).expand(4, 4))
    assert torch.equal(crops[:, 2], images[:, 0, 2, :4, :4])  # of its own sample
    counts = torch.zeros(3, 4)
    counts.index_put_((tops.long(), lefts.long()), torch.ones(600), accumulate=True)
    assert counts.min() > 25  # 50 expected at each of the 12 places
    assert counts.max() < 80


@pytest.mark.parametrize("mode", [True, False])
def test_a_crop_with_a_corner_stays_there(mode: bool) -> None:
    images = pictures()
    crop = make("crop", size=[10, 12], corner=[3, 5]).train(mode)
    assert torch.equal(crop({KEY: images})[KEY], images[..., 3:13, 5:17])


def test_a_crop_that_reaches_outside_is_refused() -> None:
    with pytest.raises(SpecError, match=r"at \[15, 0\] reaches outside") as caught:
        make("crop", size=10, corner=[15, 0])
    assert caught.value.field == "corner"
    assert "[14, 22]" in caught.value.help


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(SpecError, match="25 x 32 is larger than") as caught:
        make("crop", size=[25, 32])
    assert (caught.value.field, caught.value.source) == ("size", KEY)
    assert "24 x 32" in caught.value.label


# --- random_shift ------------------------------------------------------------------------------------------------


def test_random_shift_is_padding_and_cropping() -> None:
    images = coordinates(400, (8, 9))
    moved = make("random_shift", shape=(8, 9), pixels=2).train()({KEY: images})[KEY]
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    places = set()
    for index in range(400):
        matches = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if (padded[index, ..., top : top + 8, left : left + 9] == moved[index].numpy()).all()
        ]
        assert len(matches) == 1
        places.update(matches)
    assert len(places) == 25


def test_random_shift_keeps_bytes_and_rests_in_evaluation() -> None:
    part, images = make("random_shift"), pictures()
    assert part.train()({KEY: images})[KEY].dtype == torch.uint8
    assert not torch.equal(part({KEY: images})[KEY], images)
    assert part.eval()({KEY: images})[KEY] is images


# --- color_jitter ------------------------------------------------------------------------------------------------

REFERENCES = {
    "brightness": reference.adjust_brightness,
    "contrast": reference.adjust_contrast,
    "saturation": reference.adjust_saturation,
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("factor", [0.4, 1.0, 1.6])
def test_color_jitter_agrees_with_torchvision(
    name: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        color_jitter, "_factors", lambda images, strength: torch.full((len(images), 1, 1, 1, 1), factor)
    )
    strengths = {**dict.fromkeys((*REFERENCES, "hue"), 0.0), name: 0.5}
    images = pictures() / 255.0
    ours = make("color_jitter", **strengths).train()({KEY: images})[KEY]
    torch.testing.assert_close(ours, REFERENCES[name](images, factor), atol=2e-4, rtol=0)


@settings(max_examples=40, deadline=None)
@given(turn=st.floats(-0.5, 0.5), seed=st.integers(0, 1000))
def test_hue_agrees_with_torchvision(turn: float, seed: int) -> None:
    images = torch.rand(2, 1, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    images[0, 0, :, 0] = 0.5  # grey has no hue
    ours = color_jitter.turn_hue(images, torch.full((2, 1, 1, 1), turn))
    torch.testing.assert_close(ours, reference.adjust_hue(images, turn), atol=1e-5, rtol=0)


def test_a_third_of_a_circle_permutes_the_channels() -> None:
    images = torch.rand(2, 1, 3, 5, 6)
    turned = color_jitter.turn_hue(images, torch.full((2, 1, 1, 1), 1 / 3))
    torch.testing.assert_close(turned, images[:, :, [2, 0, 1]], atol=1e-5, rtol=0)


def test_color_jitter_draws_evenly_and_for_each_sample() -> None:
    part = make("color_jitter", brightness=0.3, contrast=0.0, saturation=0.0, hue=0.0).train()
    images = torch.full((2000, 1, 3, 1, 1), 0.5)
    factors = part({KEY: images})[KEY][:, 0, 0, 0, 0] / 0.5
    assert 0.7 <= factors.min() < 0.71
    assert 1.29 < factors.max() <= 1.3
    assert abs(factors.mean() - 1.0) < 0.02
    assert abs(factors.std() - 0.6 / 12**0.5) < 0.01


def test_color_jitter_keeps_bytes() -> None:
    part, images = make("color_jitter"), pictures()
    changed = part.train()({KEY: images})[KEY]
    assert changed.dtype == torch.uint8
    assert not torch.equal(changed, images)
    still = make("color_jitter", brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0).train()
    assert torch.equal(still({KEY: images})[KEY], images)


# --- normalize_image ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "mean", "std"),
    [
        ({}, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ({"stats": "half"}, [0.5] * 3, [0.5] * 3),
        ({"stats": "zero_one"}, [0.0] * 3, [1.0] * 3),
        ({"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
    ],
)
def test_normalize_image_is_the_formula(options: dict[str, Any], mean: list[float], std: list[float]) -> None:
    images, part = pictures(), make("normalize_image", **options)
    shape = (1, 1, 3, 1, 1)
    exact = (images.double().numpy() / 255.0 - np.reshape(mean, shape)) / np.reshape(std, shape)
    from_bytes, from_floats = part({KEY: images})[KEY], part({KEY: images / 255.0})[KEY]
    assert from_bytes.dtype == torch.float32
    np.testing.assert_allclose(from_bytes.numpy(), exact, atol=2e-6)
    np.testing.assert_allclose(from_floats.numpy(), exact, atol=2e-6)


def test_a_mean_needs_a_deviation() -> None:
    with pytest.raises(SpecError, match="`mean` is given without `std`") as caught:
        make("normalize_image", mean=[0.0, 0.0, 0.0])
    assert caught.value.field == "mean"


# --- blank -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_blank_images_are_black(training: bool) -> None:
    images = pictures()
    seen = make("blank").train(training)({KEY: images})[KEY]
    assert seen.shape == images.shape
    assert seen.dtype == torch.uint8
    assert not seen.any()
    assert images.any()


# --- all ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["crop", "random_shift", "color_jitter"])
def test_samples_differ_in_training(name: str) -> None:
    options = {"size": [12, 16]} if name == "crop" else {}
    images = pictures(1).expand(16, -1, -1, -1, -1)
    changed = make(name, **options).train()({KEY: images})[KEY]
    assert len({tuple(sample.flatten().tolist()) for sample in changed}) > 8


def test_only_the_named_cameras_change() -> None:
    part = TRANSFORMS.get("resize")
    inputs = {
        key: Spec(Kind.IMAGE, ("B", 1, 3, 8, 8)) for key in ("observation.images.a", "observation.images.b")
    }
    config = part.Config(type="resize", size=4, keys=["observation.images.b"])
    specs = part.specs(config, inputs, {})
    assert [spec.dims[3:] for spec in specs.values()] == [(8, 8), (4, 4)]
    batch = {key: torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8) for key in inputs}
    assert [value.shape[-1] for value in part(config, inputs, {})(batch).values()] == [8, 4]
    with pytest.raises(SpecError, match="`c` is no image") as caught:
        part.specs(part.Config(type="resize", size=4, keys=["observation.images.a", "c"]), inputs, {})
    assert caught.value.field == "keys.1"
