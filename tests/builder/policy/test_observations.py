"""Observations at deployment: only what is read, only as it was in training, and never by reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policysmith.builder import Builder
from policysmith.components.registry import BACKBONES, COLLATORS
from policysmith.schemas.errors import SpecError

CAMERA = "observation.images.corner2"
STATE = "observation.state"


def black(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("change", "expected", "given", "cures"),
    [
        ({STATE: torch.zeros(1)}, r"float32 \(4,\)", r"float32 \(1,\)", ["give 4 values"]),
        ({STATE: torch.zeros(1, 4)}, r"float32 \(4,\)", r"float32 \(1, 4\)", ["drop the leading dimension"]),
        ({CAMERA: black(3, 480, 640)}, r"\(3, 96, 96\)", r"uint8 \(3, 480, 640\)",
         ["resize it to the camera's size, 96 x 96"]),
        ({CAMERA: black(96, 96, 3)}, r"\(3, 96, 96\)", r"uint8 \(96, 96, 3\)", ["transpose it"]),
        ({CAMERA: np.zeros((480, 640, 3), np.uint8)}, r"\(3, 96, 96\)", r"uint8 \(480, 640, 3\)",
         ["transpose it", "resize it"]),
        ({CAMERA: black(1, 3, 96, 96)}, r"\(3, 96, 96\)", r"uint8 \(1, 3, 96, 96\)", ["drop the leading dimension"]),
        ({CAMERA: black(4, 96, 96)}, r"\(3, 96, 96\)", r"uint8 \(4, 96, 96\)", ["give 3 channels"]),
        ({CAMERA: 255.0 * torch.ones(3, 96, 96)}, r"uint8 \(3, 96, 96\)", r"float32 \(3, 96, 96\)",
         ["give uint8, 0 to 255"]),
        ({CAMERA: black(96, 96)}, r"uint8 \(3, 96, 96\)", r"uint8 \(96, 96\)", ["give one image"]),
    ],
)  # fmt: skip
def test_what_differs_from_training_names_key_and_cure(
    change: dict[str, Any],
    expected: str,
    given: str,
    cures: list[str],
    tiny: dict[str, Any],
    observation: dict[str, Any],
) -> None:
    policy = Builder.from_recipe(tiny).build()
    (key,) = change
    with pytest.raises(SpecError, match=rf"`{key}` .*must be .*{expected}, but it is {given}") as caught:
        policy.select_action(observation | change)
    assert all(cure in caught.value.help for cure in cures)
    assert len(caught.value.help.split(", ")) >= len(cures)
    policy.select_action(observation)
    with pytest.raises(SpecError):  # also while a chunk is running
        policy.select_action(observation | change)


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (torch.tensor([1j, 0, 0, 0]), "complex"),
        (np.array([1j, 0, 0, 0]), "complex"),
        (torch.zeros(4, device="meta"), "on the meta device"),
        (torch.ones(4).to_sparse(), "sparse"),
    ],
)
def test_tensors_that_hold_no_plain_numbers_are_refused(
    state: Any, kind: str, tiny: dict[str, Any], observation: dict[str, Any]
) -> None:
    with pytest.raises(SpecError, match=f"`{STATE}` of the observation is {kind}"):
        Builder.from_recipe(tiny).build().select_action(observation | {STATE: state})


def test_chunks_take_windows(tiny: dict[str, Any], observation: dict[str, Any]) -> None:
    policy = Builder.from_recipe(tiny).override({"data.observation_steps": 2}).build()
    window = {CAMERA: observation[CAMERA].expand(2, 3, 96, 96), STATE: observation[STATE].expand(2, 4)}
    assert policy.chunk(window).shape == (4, 4)
    with pytest.raises(
        SpecError, match=r"\(2, 3, 96, 96\), but it is uint8 \(1, 3, .*give 2 time steps in front"
    ):
        policy.chunk(window | {CAMERA: observation[CAMERA][None]})
    with pytest.raises(
        SpecError, match=r"\(2, 3, 96, 96\), but it is uint8 \(3, .*give 2 time steps in front"
    ):
        policy.chunk(window | {CAMERA: observation[CAMERA]})
    with pytest.raises(SpecError, match=r"it is uint8 \(2, 96, 96, 3\) \(transpose it"):
        policy.chunk(window | {CAMERA: window[CAMERA].permute(0, 2, 3, 1)})
    with pytest.raises(SpecError, match=r"`observation.state` .*must be float32 \(2, 4\)"):
        policy.chunk(window | {STATE: observation[STATE]})


def test_only_what_is_read_is_needed(tiny: dict[str, Any], observation: dict[str, Any]) -> None:
    policy = Builder.from_recipe(tiny).build()
    expected = policy.select_action(observation)
    policy.reset()
    read = {key: observation[key] for key in (CAMERA, STATE)}
    assert torch.equal(policy.select_action(read | {"depth": "anything", "task": 3}), expected)
    for key in read:
        with pytest.raises(SpecError, match=rf"lacks `{key}`[^?]*\(given: "):  # no guess among what is right
            policy.select_action({name: value for name, value in read.items() if name != key})
    with pytest.raises(SpecError, match=r"is `observation\.image\.corner2` a misspelling"):
        policy.select_action({STATE: read[STATE], "observation.image.corner2": read[CAMERA]})

    del tiny["policy"]["backbones"]["vision"]
    blind = Builder.from_recipe(tiny).build()
    action = blind.select_action({STATE: observation[STATE]})
    blind.reset()
    assert torch.equal(blind.select_action({STATE: observation[STATE], CAMERA: None}), action)


def test_an_instruction_is_needed_where_it_is_tokenized(
    tiny: dict[str, Any], observation: dict[str, Any], tmp_path: Path
) -> None:
    tiny["collator"] = COLLATORS.get("language").example().model_dump(mode="json")
    text = BACKBONES.get("language").example().model_dump(mode="json")
    seeing = Builder.from_recipe(tiny).build()
    tiny["policy"]["backbones"] = {"text": text}
    reading = Builder.from_recipe(tiny).build()
    reading.select_action({"task": "open the drawer"})
    for policy in (seeing, reading):
        with pytest.raises(SpecError, match="lacks `task`, which the policy reads: a str"):
            policy.select_action({key: value for key, value in observation.items() if key != "task"})
    with pytest.raises(SpecError, match="`task` of the observation is list, and must be a str"):
        reading.select_action({"task": ["open the drawer"]})


def test_arrays_of_any_layout_and_precision_mean_the_same(
    tiny: dict[str, Any], observation: dict[str, Any]
) -> None:
    policy = Builder.from_recipe(tiny).build()
    expected = policy.select_action(observation)
    policy.reset()
    flipped = np.ascontiguousarray(observation[CAMERA].numpy()[::-1])[::-1]
    same = {CAMERA: flipped, STATE: observation[STATE].double().tolist()}
    torch.testing.assert_close(policy.select_action(same), expected)


def test_the_history_does_not_follow_the_callers_buffers(
    tiny: dict[str, Any], observation: dict[str, Any]
) -> None:
    builder = Builder.from_recipe(tiny).override({"data.observation_steps": 2, "policy.execute": 1})
    policy = builder.build()
    second = {CAMERA: 255 - observation[CAMERA], STATE: observation[STATE] + 1}
    policy.select_action(observation)
    expected = policy.select_action(second)
    policy.reset()
    for kind in (torch.Tensor, np.ndarray):
        buffers = {key: observation[key].clone() for key in second}
        given = buffers if kind is torch.Tensor else {key: value.numpy() for key, value in buffers.items()}
        policy.select_action(given)
        for key, value in second.items():
            buffers[key].copy_(value)
        assert torch.equal(policy.select_action(given), expected)
        policy.reset()
