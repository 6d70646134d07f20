"""Contract of transforms."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from policysmith.components.randomness.per_sample import SAMPLE_KEY
from policysmith.components.registry import (
    TRANSFORMS,
)
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Range, Spec

from .built import Built, assert_equal, of


def published(built: Built) -> dict[str, Spec]:
    """Return the specs of a transform, with normalized vectors if it requires them."""
    try:
        return built.specs()
    except SpecError as error:
        if error.trait != "range":
            raise
    vectors = (Kind.STATE, Kind.ACTION)
    normal = {
        k: dataclasses.replace(s, range=Range.NORMALIZED)
        for k, s in built.inputs.items()
        if s.kind in vectors
    }
    inputs = {**built.inputs, **normal}
    return built.cls.specs(built.config, inputs, built.facts)  # type: ignore[no-any-return]


@of(TRANSFORMS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_transform_publishes_real_shapes(built: Built, device: str, training: bool) -> None:
    part = built.make(device).train(training)
    specs, given = published(built), built.world.batch()
    outputs = built.run(part, 3, device)
    assert {k for k, spec in specs.items() if spec.kind is not Kind.TEXT} <= outputs.keys()
    assert not (built.inputs.keys() - specs.keys()) & outputs.keys()
    assert all(key.startswith("action_") for key in outputs.keys() - specs.keys() - given.keys())
    for key, value in outputs.items():
        if key in specs:
            assert tuple(value.shape) == (3, *specs[key].dims[1:]), key
            assert value.device.type == device


@of(TRANSFORMS)
def test_transform_is_deterministic_in_eval_and_seeded_in_train(built: Built) -> None:
    part = built.make()
    assert_equal(built.run(part.eval(), seed=1), built.run(part.eval(), seed=2))
    assert_equal(built.run(part.train(), seed=1), built.run(part.train(), seed=1))


@of(TRANSFORMS)
def test_frames_may_be_stored_after_a_transform_that_says_so(built: Built) -> None:
    """An idempotent transform changes each frame by itself, and its result no more."""
    part, batch = built.make(), built.world.batch()
    for key, value in batch.items() if getattr(built.cls, "idempotent", False) else ():
        if key.startswith("observation.images."):
            images = (value * 255).to(torch.uint8) if value.is_floating_point() else value
            once = part.train().apply_to(images, None)
            alone = part.apply_to(images[1:2, :1], None)
            assert torch.equal(part.apply_to(once, None), once)
            assert torch.equal(alone, once[1:2, :1])


@of(TRANSFORMS)
def test_transform_treats_all_steps_of_a_camera_alike(built: Built) -> None:
    part, batch = built.make().train(), built.world.batch()
    for key, value in batch.items():
        if key.startswith("observation.images."):
            batch[key] = value[:, :1].expand(-1, value.shape[1], -1, -1, -1)
    for key, value in part(batch).items():
        if key.startswith("observation.images."):
            assert torch.equal(value[:, 0], value[:, 1])


@of(TRANSFORMS)
def test_transform_passes_over_absent_keys_and_carries_others(built: Built) -> None:
    part = built.make()
    assert part({}) == {}
    extra = object()
    assert part({"meta": extra})["meta"] is extra
    state = {"observation.state": built.world.batch()["observation.state"]}
    expected = {key for key in published(built) if key.startswith("observation.") and "images" not in key}
    assert {key for key in part(state) if not key.startswith("action_")} == expected


@of(TRANSFORMS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_transform_is_undone_for_actions(built: Built, training: bool) -> None:
    part, batch = built.make().train(training), built.world.batch()
    back = part.inverse(part(batch))
    torch.testing.assert_close(back["action"], batch["action"], atol=1e-5, rtol=1e-5)
    if not training:  # the noise of training is not undone
        torch.testing.assert_close(
            back["observation.state"], batch["observation.state"], atol=1e-5, rtol=1e-5
        )
    part.eval()
    deployed = part({k: v for k, v in batch.items() if not k.startswith("action")})
    back = part.inverse({**deployed, "action": part(batch)["action"]})
    torch.testing.assert_close(back["action"], batch["action"], atol=1e-5, rtol=1e-5)


@of(TRANSFORMS)
def test_transform_names_only_keys_that_there_are(built: Built) -> None:
    for keys in (built.cls.needs(built.config, built.inputs), built.cls.measures(built.config, built.inputs)):
        assert {*keys} <= built.inputs.keys()


@of(TRANSFORMS)
def test_transform_does_not_follow_the_models_dtype(built: Built) -> None:
    part = built.make().eval()
    expected = built.run(part)
    assert_equal(expected, built.run(part.to(torch.bfloat16)))


def with_keys(built: Built, size: int, first: int = 0) -> dict[str, Any]:
    return {**built.world.batch(size), SAMPLE_KEY: torch.arange(first, first + size)}


def of_samples(batch: dict[str, Any], chosen: list[int]) -> dict[str, Any]:
    return {k: v[chosen] if isinstance(v, Tensor) else [v[i] for i in chosen] for k, v in batch.items()}


def tensors(batch: dict[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in batch.items() if isinstance(value, Tensor)}


@of(TRANSFORMS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(chosen=st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_a_sample_is_changed_alike_among_whatever_others(built: Built, chosen: list[int]) -> None:
    part, batch = built.make().train(), with_keys(built, 5)
    assert_equal(tensors(of_samples(part(batch), chosen)), tensors(part(of_samples(batch, chosen))))


@of(TRANSFORMS)
def test_what_is_random_follows_from_the_key_and_the_place_alone(built: Built) -> None:
    part, size = built.make().train(), 32
    state = torch.get_rng_state()
    found = tensors(part(with_keys(built, size)))
    assert torch.equal(torch.get_rng_state(), state), "draws from torch's generator"
    part(built.world.batch(size))
    draws = not torch.equal(torch.get_rng_state(), state)
    assert_equal(found, tensors(part(with_keys(built, size))))
    others = [tensors(part(with_keys(built, size, first=size)))]
    part.place = "transforms.7"
    others.append(tensors(part(with_keys(built, size))))
    for other in others:
        same = [torch.equal(value, other[key]) for key, value in found.items() if key != SAMPLE_KEY]
        assert all(same) != draws
    assert draws or built.name not in RANDOM


RANDOM = {
    "color_jitter", "crop", "flip", "grayscale", "posterize", "random_rotation", "random_shift", "state_dropout",
    "state_noise",
}  # fmt: skip


@of(TRANSFORMS)
def test_a_camera_is_changed_alike_beside_whatever_others(built: Built) -> None:
    part, batch = built.make().train(), with_keys(built, 16)
    cameras = [key for key in batch if key.startswith("observation.images.")]
    both = part(batch)
    for key in cameras:
        alone = part({k: v for k, v in batch.items() if k not in cameras or k == key})
        assert torch.equal(alone[key], both[key])
