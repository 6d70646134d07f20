"""Keys of samples in the batches of a run depend on seed, step and sample, and on nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from policysmith.builder import Builder
from policysmith.builder.data.sampler import MixtureSampler, ResumableSampler
from policysmith.builder.policy.sample_pipeline import KEY, SamplePipeline, TransformedDataset
from policysmith.builder.training.batches import loaded_batches, stored_batches
from policysmith.builder.training.frozen.table import Rows
from policysmith.builder.training.randomness import sample_keys
from policysmith.components.backbones.vit import Vit
from policysmith.components.randomness.per_sample import SAMPLE_KEY

CAMERA = "observation.images.corner2"
CPU = torch.device("cpu")
SIZE = 24
SHARES = ((10, 1.0), (14, 2.0))
Keys = dict[int, set[int]]
"""Keys by sample."""


class Numbers(Dataset[dict[str, int]]):
    """Samples that hold their index, or their `(index, key)`."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: Any) -> Any:
        return index


def together(samples: Any) -> dict[str, Any]:
    return {"index": torch.tensor(samples)}


def coming(order: Any, accumulate: int = 1, workers: int = 0) -> Iterator[dict[str, Any]]:
    options: dict[str, Any] = {"keyed": False, "workers": workers, "device": CPU}
    return loaded_batches(Numbers(), order, together, accumulate=accumulate, **options)


def of_step(step: int, world: int, batch: int, accumulate: int, *, mixed: bool, seed: int = 0) -> Keys:
    """Return the samples and keys of one step, for so many processes, batches and samples."""
    found: Keys = {}
    for rank in range(world):
        place = {"batch_size": batch, "seed": seed, "rank": rank, "world_size": world}
        place["start_step"] = step * accumulate
        order = MixtureSampler(SHARES, **place) if mixed else ResumableSampler(SIZE, **place)
        for held in itertools.islice(coming(order, accumulate), accumulate):
            for index, key in zip(held["index"].tolist(), held[SAMPLE_KEY].tolist(), strict=True):
                found.setdefault(index, set()).add(key)
    return found


@given(
    step=st.integers(0, 12),
    cut=st.sampled_from([(1, 12, 1), (2, 6, 1), (1, 6, 2), (3, 2, 2), (2, 1, 6)]),
    mixed=st.booleans(),
)
def test_keys_do_not_tell_how_a_step_is_cut_into_processes_and_batches(
    step: int, cut: tuple[int, int, int], mixed: bool
) -> None:
    assert of_step(step, *cut, mixed=mixed) == of_step(step, 1, 12, 1, mixed=mixed)


@given(
    step=st.integers(0, 12), batches=st.tuples(st.integers(1, 24), st.integers(1, 24)), mixed=st.booleans()
)
def test_a_sample_has_its_key_in_batches_of_every_size(
    step: int, batches: tuple[int, int], mixed: bool
) -> None:
    one, other = (of_step(step, 1, size, 1, mixed=mixed) for size in batches)
    assert all(one[index] == other[index] for index in one.keys() & other.keys())
    assert all(len(keys) == 1 for keys in one.values())


@pytest.mark.parametrize("mixed", [False, True], ids=["one dataset", "mixture"])
def test_samples_steps_and_seeds_have_keys_of_their_own(mixed: bool) -> None:
    held = [
        of_step(step, 1, SIZE, 1, mixed=mixed, seed=seed)
        for step, seed in itertools.product(range(9), (0, 1))
    ]
    keys = [key for found in held for own in found.values() for key in own]
    assert len({*keys}) == len(keys) > 200


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_has_the_keys_of_the_uninterrupted(workers: int) -> None:
    orders = [ResumableSampler(SIZE, batch_size=5, seed=3, start_step=start) for start in (0, 8)]
    whole, resumed = (coming(order, accumulate=2, workers=workers) for order in orders)
    pairs = itertools.islice(zip(itertools.islice(whole, 8, None), resumed, strict=False), 6)
    for position, (one, other) in enumerate(pairs, 8):
        assert all(torch.equal(one[key], other[key]) for key in ("index", SAMPLE_KEY))
        assert torch.equal(one[SAMPLE_KEY], sample_keys(3, position // 2, one["index"].tolist()))


def test_stored_rows_and_datasets_that_draw_themselves_have_the_same_keys() -> None:
    place = {"batch_size": 5, "seed": 3, "start_step": 2}
    expected = coming(ResumableSampler(SIZE, **place), accumulate=3)
    rows = Rows({"index": torch.arange(SIZE)})
    table = stored_batches(rows.batch, ResumableSampler(SIZE, **place), CPU, accumulate=3)
    options: dict[str, Any] = {"accumulate": 3, "keyed": True, "workers": 0, "device": CPU}
    pairs = loaded_batches(Numbers(), ResumableSampler(SIZE, **place), together, **options)
    for plain, row, pair in itertools.islice(zip(expected, table, pairs, strict=True), 7):
        assert torch.equal(plain["index"], row["index"])
        assert torch.equal(plain[SAMPLE_KEY], row[SAMPLE_KEY])
        assert torch.equal(pair["index"], torch.stack([plain["index"], plain[SAMPLE_KEY]], dim=1))
        assert pair.keys() == {"index"}


def test_a_step_sees_the_same_images_in_one_batch_or_in_two(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Vit.forward

    def seen(accumulate: int) -> list[set[tuple[float, ...]]]:
        """Record the input of the backbone in every step."""
        images: list[tuple[float, ...]] = []

        def watched(self: Vit, observations: Any, outputs: Any) -> Any:
            images.extend(tuple(image.tolist()) for image in observations[CAMERA].flatten(1))
            return forward(self, observations, outputs)

        changes = {"training.accumulate": accumulate, "training.batch_size": 8 // accumulate}
        builder = Builder.from_recipe(tiny).override(changes)
        builder.check()
        monkeypatch.setattr(Vit, "forward", watched)
        builder.train(output=tmp_path / str(accumulate), device="cpu")
        monkeypatch.setattr(Vit, "forward", forward)
        del images[: 8 // accumulate]  # of the pass that is counted for its operations
        return [{*images[first : first + 8]} for first in range(0, len(images), 8)]

    tiny["transforms"][:1] = [{"type": "random_shift", "pixels": 9}, {"type": "color_jitter"}]
    whole = seen(1)
    assert whole == seen(2)
    assert [len(step) for step in whole] == [8] * 4


def test_two_like_transforms_of_a_policy_draw_apart(tiny: dict[str, Any], batch: Any) -> None:
    tiny["transforms"].insert(0, tiny["transforms"][0])
    first, second = Builder.from_recipe(tiny).build().train().transforms[:2]
    given = {**batch(16), SAMPLE_KEY: torch.arange(16)}
    moved, again, other = (shift(given)[CAMERA] for shift in (first, first, second))
    assert torch.equal(moved, again)
    same = [torch.equal(*both) for both in zip(moved, other, strict=True)]
    assert sum(same) < 5  # one in 25 is expected


def test_a_hand_written_policys_samples_are_changed_like_those_of_a_composed_one(
    tiny: dict[str, Any], batch: Any
) -> None:
    tiny["transforms"][1:1] = [{"type": "random_shift"}, {"type": "color_jitter"}]
    policy = Builder.from_recipe(tiny).build().train()
    given = {**batch(4), SAMPLE_KEY: torch.arange(4) * 77}
    expected = policy.transform(given)[CAMERA]
    setattr(policy.config, KEY, policy.content)
    dataset = TransformedDataset(Samples(given), SamplePipeline(policy.config))
    for index, key in enumerate(given[SAMPLE_KEY].tolist()):
        assert torch.equal(dataset[index, key][CAMERA], expected[index])
        assert not torch.equal(dataset[index, key + 1][CAMERA], expected[index])
        assert torch.equal(dataset[index][CAMERA], policy.eval().transform(given)[CAMERA][index])
        assert SAMPLE_KEY not in dataset[index, key]


class Samples(Dataset[dict[str, Any]]):
    """Collate samples into a batch."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self._batch = {key: value for key, value in batch.items() if key != SAMPLE_KEY}

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value[index] for key, value in self._batch.items()}
