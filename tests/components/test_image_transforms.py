"""Image transforms against independent references: PIL, torchvision, numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from policysmith.components.pixels import shift_hue
from policysmith.components.randomness.per_sample import SAMPLE_KEY
from policysmith.components.registry import TRANSFORMS
from policysmith.components.transforms import color_jitter, random_rotation
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Range, Spec

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
    """Return images (B, 1, 3, H, W) whose pixels hold their own row, column and sample."""
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


def test_crop_takes_the_center_in_evaluation() -> None:
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
        color_jitter.ColorJitter, "_draw", lambda self, draws: torch.full((len(draws), 4), factor)
    )
    strengths = {**dict.fromkeys((*REFERENCES, "hue"), 0.0), name: 0.5}
    images = pictures() / 255.0
    ours = make("color_jitter", **strengths).train()({KEY: images})[KEY]
    torch.testing.assert_close(ours, REFERENCES[name](images, factor), atol=2e-4, rtol=0)


@settings(max_examples=40)
@given(turn=st.floats(-0.5, 0.5), seed=st.integers(0, 1000))
def test_hue_agrees_with_torchvision(turn: float, seed: int) -> None:
    images = torch.rand(2, 1, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    images[0, 0, :, 0] = 0.5  # gray has no hue
    ours = shift_hue(images, torch.full((2, 1, 1, 1), turn))
    torch.testing.assert_close(ours, reference.adjust_hue(images, turn), atol=1e-5, rtol=0)


def test_a_third_of_a_circle_permutes_the_channels() -> None:
    images = torch.rand(2, 1, 3, 5, 6)
    turned = shift_hue(images, torch.full((2, 1, 1, 1), 1 / 3))
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


# --- pad_square, resize_with_pad ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24, 32), (33, 20), (9, 9), (7, 8)])
@pytest.mark.parametrize("fill", [0.0, 0.5])
def test_pad_square_agrees_with_torchvision(shape: tuple[int, int], fill: float) -> None:
    images, side = pictures(shape=shape), max(shape)
    top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
    around = [left, top, side - shape[1] - left, side - shape[0] - top]
    part = make("pad_square", shape=shape, fill=fill)
    assert torch.equal(part({KEY: images})[KEY], reference.pad(images, around, fill=round(255 * fill)))
    theirs = reference.pad(images / 255.0, around, fill=fill)
    assert torch.equal(part({KEY: images / 255.0})[KEY], theirs)


def test_cameras_of_two_shapes_are_padded_each() -> None:
    part = TRANSFORMS.get("pad_square")
    sizes = {"observation.images.a": (8, 12), "observation.images.b": (10, 6)}
    inputs = {key: Spec(Kind.IMAGE, ("B", 1, 3, *size)) for key, size in sizes.items()}
    specs = part.specs(part.Config(type="pad_square"), inputs, {})
    assert [spec.dims[3:] for spec in specs.values()] == [(12, 12), (10, 10)]


@settings(max_examples=40)
@example(shape=(9, 9), size=(3, 1), place="center", antialias=True)  # torch's kernel for bytes is wrong here
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    place=st.sampled_from(["center", "top_left", "bottom_right"]),
    antialias=st.booleans(),
)
def test_resize_with_pad_is_resizing_and_padding(
    shape: tuple[int, int], size: tuple[int, int], place: str, antialias: bool
) -> None:
    images = pictures(2, shape)
    options = {"size": list(size), "place": place, "antialias": antialias, "fill": 0.25}
    part = make("resize_with_pad", shape=shape, **options)
    ratio = max(shape[0] / size[0], shape[1] / size[1])
    height, width = max(1, int(shape[0] / ratio)), max(1, int(shape[1] / ratio))
    spare = (size[0] - height, size[1] - width)
    top, left = {"center": (spare[0] // 2, spare[1] // 2), "top_left": (0, 0), "bottom_right": spare}[place]
    around = [left, top, spare[1] - left, spare[0] - top]
    floats = images / 255.0
    theirs = reference.pad(reference.resize(floats, [height, width], antialias=antialias), around, fill=0.25)
    torch.testing.assert_close(part({KEY: floats})[KEY], theirs, atol=1e-6, rtol=0)
    ours = part({KEY: images})[KEY]
    assert ours.dtype == torch.uint8
    assert (ours / 255.0 - theirs).abs().max() <= 1.01 / 255.0


def test_resize_with_pad_keeps_the_aspect_ratio() -> None:
    images = torch.full((1, 1, 3, 480, 640), 255, dtype=torch.uint8)
    ours = make("resize_with_pad", shape=(480, 640), size=224)({KEY: images})[KEY]
    assert ours.shape[-2:] == (224, 224)
    lit = (ours == 255).all(dim=2)[0, 0]
    assert lit.sum() == 168 * 224
    assert lit[28:196].all()


# --- random_rotation ---------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    angle=st.floats(-180, 180),
    shape=st.sampled_from([(24, 32), (9, 9), (11, 6)]),
    seed=st.integers(0, 1000),
)
def test_rotation_agrees_with_torchvision(angle: float, shape: tuple[int, int], seed: int) -> None:
    images = torch.rand(2, 2, 3, *shape, generator=torch.Generator().manual_seed(seed))
    angles = torch.tensor([angle, -angle / 2])
    ours = random_rotation.rotate_images(images, torch.deg2rad(angles), 0.0)
    for index in range(2):
        theirs = reference.rotate(images[index], angles[index].item(), reference.InterpolationMode.BILINEAR)
        torch.testing.assert_close(ours[index], theirs, atol=2e-4, rtol=0)


def test_quarter_turns_are_exact_and_what_was_outside_is_filled() -> None:
    images = pictures(2, (9, 9))
    quarter = torch.full((2,), torch.pi / 2)
    assert torch.equal(random_rotation.rotate_images(images, quarter, 0.0), images.rot90(1, (-2, -1)))
    white = torch.full((2, 1, 3, 9, 9), 255, dtype=torch.uint8)
    assert torch.equal(random_rotation.rotate_images(white, quarter / 2, 1.0), white)
    gray = random_rotation.rotate_images(images, quarter / 2, 0.4)
    assert (gray[..., 0, 0] == 102).all()


def test_random_rotation_draws_evenly_up_to_its_degrees(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(
        random_rotation, "rotate_images", lambda images, angles, fill: seen.append(angles) or images
    )
    make("random_rotation", degrees=30.0).train()({KEY: pictures(4000, (1, 1))})
    degrees = torch.rad2deg(seen[0])
    assert 29.5 < degrees.max() <= 30.0
    assert -30.0 <= degrees.min() < -29.5
    assert abs(degrees.mean()) < 1.0
    assert abs(degrees.std() - 60 / 12**0.5) < 0.5


# --- grayscale, posterize ----------------------------------------------------------------------------------------


def test_grayscale_agrees_with_torchvision() -> None:
    images, part = pictures(), make("grayscale").eval()
    theirs = reference.rgb_to_grayscale(images / 255.0, num_output_channels=3)
    torch.testing.assert_close(part({KEY: images / 255.0})[KEY], theirs, atol=5e-4, rtol=0)
    ours = part({KEY: images})[KEY]
    assert ours.dtype == torch.uint8
    assert (ours / 255.0 - theirs).abs().max() <= 0.6 / 255.0


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_posterize_agrees_with_torchvision(bits: int) -> None:
    images, part = pictures(), make("posterize", bits=bits, p=1.0).eval()
    assert torch.equal(part({KEY: images})[KEY], reference.posterize(images, bits))
    torch.testing.assert_close(part({KEY: images / 255.0})[KEY], reference.posterize(images / 255.0, bits))


@pytest.mark.parametrize("name", ["grayscale", "posterize", "flip"])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_a_probability_is_the_share_of_changed_samples(name: str, p: float) -> None:
    images = pictures(1, (6, 8)).expand(4000, -1, -1, -1, -1)
    part = make(name, shape=(6, 8), p=p)
    changed = (part.train()({KEY: images})[KEY] != images).flatten(1).any(1).float().mean().item()
    assert abs(changed - p) < 0.03
    resting = torch.equal(part.eval()({KEY: images})[KEY], images)
    assert resting == (p < 1.0)


# --- flip --------------------------------------------------------------------------------------------------------

FLIPPED = {
    "observation.images.a": Spec(Kind.IMAGE, ("B", 1, 3, 4, 5)),
    "observation.images.b": Spec(Kind.IMAGE, ("B", 1, 3, 4, 5)),
    "observation.state": Spec(Kind.STATE, ("B", 1, 3)),
    "action": Spec(Kind.ACTION, ("B", 2, 4)),
}


def flip(**options: Any) -> Any:
    part = TRANSFORMS.get("flip")
    config = part.Config(type="flip", **options)
    part.specs(config, FLIPPED, {})
    return part(config, FLIPPED, {})


def flippable(size: int) -> dict[str, Tensor]:
    shapes = {key: (size, *spec.dims[1:]) for key, spec in FLIPPED.items()}
    return {key: torch.rand(*shape) for key, shape in shapes.items()}  # type: ignore[arg-type]


@pytest.mark.parametrize(("direction", "theirs"), [("horizontal", "hflip"), ("vertical", "vflip")])
def test_flip_mirrors_all_of_a_sample_or_nothing(direction: str, theirs: str) -> None:
    batch = flippable(64)
    part = flip(direction=direction, negate={"action": [1, -1], "observation.state": [0]})
    changed = part.train()(batch)
    mirror = {key: getattr(reference, theirs)(batch[key]) for key in FLIPPED if "images" in key}
    mirror["action"] = batch["action"] * torch.tensor([1.0, -1.0, 1.0, -1.0])
    mirror["observation.state"] = batch["observation.state"] * torch.tensor([-1.0, 1.0, 1.0])
    hits = (changed["action"] != batch["action"]).flatten(1).any(1)
    assert 10 < hits.sum() < 54
    for key, value in changed.items():
        assert torch.equal(value[hits], mirror[key][hits])
        assert torch.equal(value[~hits], batch[key][~hits])
    assert all(torch.equal(value, batch[key]) for key, value in part.eval()(batch).items())


def test_a_flip_of_everything_is_undone_for_actions() -> None:
    part, batch = flip(p=1.0, negate={"action": [0]}).eval(), flippable(3)
    changed = part(batch)
    assert torch.equal(changed["action"][..., 0], -batch["action"][..., 0])
    assert torch.equal(part.inverse(changed)["action"], batch["action"])
    plain = flip(negate={"action": [0]}).eval()
    assert torch.equal(plain.inverse(batch)["action"], batch["action"])
    specs = part.specs(part.config, FLIPPED, {})
    assert [spec.range for spec in specs.values()] == [None, None, None, Range.CHANGED]


def test_flips_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(SpecError, match=r"`observation.images.b` is not") as caught:
        flip(keys=["observation.images.a"], negate={"action": [1]})
    assert caught.value.field == "keys"
    with pytest.raises(SpecError, match="dimension 4 is not among the 4") as caught:
        flip(negate={"action": [1, 4]})
    assert caught.value.field == "negate.action.1"
    with pytest.raises(SpecError, match="`actions` is not a state or action") as caught:
        flip(negate={"actions": [1]})
    assert caught.value.field == "negate.actions"
    part = TRANSFORMS.get("flip")
    normal = {**FLIPPED, "action": replace(FLIPPED["action"], range=Range.NORMALIZED)}
    with pytest.raises(SpecError, match="`action` is normalized") as caught:
        part.specs(part.Config(type="flip", negate={"action": [1]}), normal, {})
    assert (caught.value.source, caught.value.trait) == ("action", "range")


# --- all ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["pad_square", "resize_with_pad", "random_rotation", "grayscale", "posterize", "color_jitter"]
)
def test_what_works_on_levels_comes_before_normalizing(name: str) -> None:
    part = TRANSFORMS.get(name)
    options = {"size": 8} if name == "resize_with_pad" else {}
    inputs = {KEY: Spec(Kind.IMAGE, ("B", 1, 3, 8, 8), range=Range.NORMALIZED)}
    with pytest.raises(SpecError, match=f"`{KEY}` is normalized") as caught:
        part.specs(part.Config(type=name, **options), inputs, {})
    assert (caught.value.source, caught.value.trait) == (KEY, "range")
    assert "before `normalize_image`" in caught.value.help


@pytest.mark.parametrize(
    "name", ["crop", "random_shift", "color_jitter", "random_rotation", "grayscale", "posterize", "flip"]
)
def test_cameras_draw_apart_and_steps_together(name: str) -> None:
    part = TRANSFORMS.get(name)
    options = {"crop": {"size": [12, 16]}, "grayscale": {"p": 0.5}}.get(name, {})
    keys = ["observation.images.a", "observation.images.b"]
    inputs = {key: Spec(Kind.IMAGE, ("B", 3, 3, 24, 32)) for key in keys}
    images = pictures(32)[:, :1].expand(-1, 3, -1, -1, -1)
    batch = {**dict.fromkeys(keys, images), SAMPLE_KEY: torch.arange(32)}
    found = part(part.Config(type=name, **options), inputs, {}).train()(batch)
    changed = {key: found[key] for key in keys}
    for value in changed.values():
        assert value.dtype == torch.uint8
        assert torch.equal(value, value[:, :1].expand_as(value))
    same = torch.equal(*changed.values())
    assert same == (name == "flip")  # a scene is mirrored as a whole


@pytest.mark.parametrize("name", ["crop", "random_shift", "color_jitter", "random_rotation"])
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
    with pytest.raises(SpecError, match="`c` is not an image") as caught:
        part.specs(part.Config(type="resize", size=4, keys=["observation.images.a", "c"]), inputs, {})
    assert caught.value.field == "keys.1"
