"""Transforms of images as one kernel: what they give one by one, but for rounding to bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from policysmith.components.images import fusion
from policysmith.components.images.fusion import can_fuse, fusable_chains, run_fused
from policysmith.components.randomness.per_sample import SAMPLE_KEY
from policysmith.components.registry import TRANSFORMS
from policysmith.schemas.specs import Kind, Range, Spec

KEY = "observation.images.front"
SPECS = {KEY: Spec(Kind.IMAGE, ("B", 2, 3, 20, 24), "", range=Range.BYTES)}
SHIFT = {"type": "random_shift", "pixels": 3}
RANDOM, FIXED = {"type": "crop", "size": [16, 18]}, {"type": "crop", "size": [12, 14], "corner": [2, 5]}
RESIZE, JITTER = {"type": "resize", "size": [9, 13]}, {"type": "color_jitter", "hue": 0.1}
NORMALIZE = {"type": "normalize_image", "stats": "imagenet"}


def made(*options: dict[str, Any], specs: dict[str, Spec] = SPECS) -> list[nn.Module]:
    transforms = []
    for position, each in enumerate(options):
        part = TRANSFORMS.get(each["type"])
        config = part.Config(**each)
        transforms.append(part(config, specs, {}).train())
        transforms[-1].place = str(position)
        specs = part.specs(config, specs, {})
    return transforms


def images() -> dict[str, torch.Tensor]:
    smooth = torch.nn.functional.interpolate(torch.rand(8, 3, 5, 6), (20, 24), mode="bicubic").clamp(0, 1)
    pictures = (smooth * 255).to(torch.uint8).reshape(4, 2, 3, 20, 24)
    return {KEY: pictures, "action": torch.ones(4, 1, 2), SAMPLE_KEY: torch.randint(2**63 - 1, (4,))}


def one_by_one(transforms: list[nn.Module], batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    current: dict[str, Any] = dict(batch)
    for transform in transforms:
        current = transform(current)
    return current


@pytest.mark.parametrize(
    "options",
    [
        (NORMALIZE,),
        (SHIFT, NORMALIZE),
        (RANDOM, NORMALIZE),
        (FIXED, RESIZE, NORMALIZE),
        (SHIFT, RANDOM, RESIZE, JITTER, NORMALIZE),
        (JITTER, NORMALIZE),
        ({**JITTER, "hue": 0.0, "contrast": 0.0}, {"type": "normalize_image", "stats": "clip"}),
    ],
    ids=lambda options: "-".join(each["type"] for each in options),
)
def test_as_one_they_give_what_they_give_one_by_one(options: tuple[dict[str, Any], ...]) -> None:
    transforms, batch = made(*options), images()
    (chain,) = fusable_chains(transforms)
    before = {key: value.clone() for key, value in batch.items()}
    together = run_fused(chain, batch)
    apart = one_by_one(transforms, batch)
    assert together[KEY].shape == apart[KEY].shape
    assert together[KEY].dtype == torch.float32
    levels = (together[KEY] - apart[KEY]).abs() * 255.0 * 0.225
    resizes = any(each["type"] in ("resize", "color_jitter") for each in options)
    assert levels.max() < (12.0 if resizes else 1e-3)  # hue of lumas is a matter of rounding
    assert levels.mean() < (1.0 if resizes else 1e-3)
    assert together["action"] is batch["action"]
    assert all(torch.equal(batch[key], value) for key, value in before.items())


def test_a_window_that_is_cut_after_a_shift_is_moved_with_it() -> None:
    """A crop after a shift sees the edge pixels that fill the gap."""
    transforms = made({"type": "random_shift", "pixels": 9}, FIXED, NORMALIZE)
    (chain,) = fusable_chains(transforms)
    for _ in range(5):
        batch = images()
        together = run_fused(chain, batch)[KEY]
        apart = one_by_one(transforms, batch)
        torch.testing.assert_close(together, apart[KEY], atol=1e-5, rtol=1e-5)


def test_two_cameras_draw_what_they_draw_one_by_one() -> None:
    other = "observation.images.wrist"
    transforms, batch = made(SHIFT, RANDOM, NORMALIZE, specs={**SPECS, other: SPECS[KEY]}), images()
    batch[other] = batch[KEY].flip(-1)
    (chain,) = fusable_chains(transforms)
    together = run_fused(chain, batch)
    apart = one_by_one(transforms, batch)
    for key in (KEY, other):
        torch.testing.assert_close(together[key], apart[key], atol=1e-5, rtol=1e-5)


def test_chains_end_with_a_normalization_and_keep_the_order_of_the_kernel() -> None:
    def names(*options: dict[str, Any]) -> list[list[str]]:
        return [[each.config.type for each in chain] for chain in fusable_chains(made(*options))]

    blank, half = {"type": "blank", "keys": [KEY]}, {"type": "grayscale"}
    assert names(SHIFT, JITTER) == [["random_shift"], ["color_jitter"]]
    assert names(RESIZE, RANDOM_SMALL, NORMALIZE) == [["resize"], ["crop", "normalize_image"]]
    assert names(SHIFT, half, JITTER, NORMALIZE) == [
        ["random_shift"],
        ["grayscale"],
        ["color_jitter", "normalize_image"],
    ]
    assert names(SHIFT, {**NORMALIZE, "keys": [KEY]}) == [["random_shift", "normalize_image"]]
    assert names(JITTER, NORMALIZE, blank)[0] == ["color_jitter", "normalize_image"]


RANDOM_SMALL = {"type": "crop", "size": [6, 7]}


def test_transforms_of_other_cameras_run_by_themselves() -> None:
    other = "observation.images.wrist"
    specs = {**SPECS, other: SPECS[KEY]}
    shift, normalize = TRANSFORMS.get("random_shift"), TRANSFORMS.get("normalize_image")
    transforms = [
        shift(shift.Config(**SHIFT, keys=[KEY]), specs, {}),
        normalize(normalize.Config(**NORMALIZE), specs, {}),
    ]
    assert [len(chain) for chain in fusable_chains(transforms)] == [1, 1]


def test_only_bytes_on_a_gpu_are_for_the_kernel() -> None:
    (chain,) = fusable_chains(made(SHIFT, NORMALIZE))
    assert not can_fuse(chain, images())


def test_only_what_ends_with_a_normalization_is_for_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "uses_kernel", lambda values: True)
    transforms = [*made(SHIFT), nn.Identity(), *made(NORMALIZE)]
    assert [can_fuse(chain, images()) for chain in fusable_chains(transforms)] == [False, False, True]
    assert not can_fuse(made(NORMALIZE), {})
    assert not can_fuse([part.eval() for part in made(NORMALIZE)], images())


@pytest.mark.gpu
def test_on_a_gpu_they_run_as_one_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    transforms = made(SHIFT, RANDOM, RESIZE, JITTER, NORMALIZE)
    (chain,) = fusable_chains(transforms)
    batch = {key: value.cuda() for key, value in images().items()}
    assert can_fuse(chain, batch)
    assert not can_fuse(chain, {KEY: batch[KEY].float()})
    torch.cuda.set_sync_debug_mode("error")
    try:
        together = run_fused(chain, batch)[KEY]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    apart = one_by_one(transforms, batch)
    assert (together - apart[KEY]).abs().mean() * 255.0 * 0.225 < 1.0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run_fused(chain, batch)
        torch.cuda.synchronize()
    launched = {event.name for event in profile.events()}
    assert {"_bands", "_tiles"} <= launched
    for transform in transforms:
        transform.eval()
    assert not can_fuse(chain, batch)
