"""Processes that replay steps train as a wrapped policy does, whatever happens to one of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from policysmith.builder.capture import CaptureError
from policysmith.builder.training.distributed.collectives import Peers
from policysmith.builder.training.speed import step_graph
from policysmith.builder.training.speed.step_graph import Settings
from policysmith.schemas.errors import TrainingError

from .replays import Pair

TRIED, CHECKED, TIMED, UNFIT = (
    Settings().first_replay,
    Settings().checked,
    Settings().timed,
    Settings().unfit,
)
OFTEN = Settings(busy=0.0, again=10)
"""Settings under which replays are checked often."""
STEPS = TRIED + 2 * (CHECKED + TIMED) + 5


def all_replay(patch: pytest.MonkeyPatch, second: bool) -> list[str]:
    pair = Pair(patch, processes=2, rank=int(second))
    return taken(pair)


def all_are_slower(patch: pytest.MonkeyPatch, second: bool) -> list[str]:
    pair = Pair(patch, processes=2, rank=int(second), settles=False)
    assert isinstance(pair.graph.stage, step_graph.Eager)
    pair.graph.stage.times.eager = [0.0] * 100
    return taken(pair)


def one_cannot_capture(patch: pytest.MonkeyPatch, second: bool) -> list[str]:
    pair = Pair(patch, processes=2, rank=int(second), settles=False)
    if second:

        def fails(*args: Any) -> None:
            raise CaptureError("not permitted")

        patch.setattr(step_graph, "CapturedUpdate", fails)
    return taken(pair)


def one_waits(patch: pytest.MonkeyPatch, second: bool) -> list[str]:
    pair = Pair(patch, processes=2, rank=int(second), settles=False)
    if second:
        gradients = pair.ours.own_gradients

        def waits(batch: Mapping[str, Any]) -> dict[str, Tensor]:
            gradients(batch)
            raise RuntimeError("called a synchronizing CUDA operation")

        patch.setattr(pair.ours, "own_gradients", waits)
    return taken(pair)


def one_goes_wrong(patch: pytest.MonkeyPatch, second: bool) -> list[str]:
    pair = Pair(
        patch,
        lambda replay: math.nan if second and replay == CHECKED else 0.0,
        processes=2,
        rank=int(second),
        settles=False,
    )
    return taken(pair)


def one_goes_wrong_late(patch: pytest.MonkeyPatch, second: bool) -> list[str]:
    pair = Pair(
        patch,
        lambda replay: 1.0 if second and replay > 10 else 0.0,
        processes=2,
        rank=int(second),
        settings=OFTEN,
    )
    return taken(pair)


def one_has_other_sizes(patch: pytest.MonkeyPatch, second: bool) -> list[str]:
    pair = Pair(patch, processes=2, rank=int(second))
    return taken(pair, lambda step: 3 if second and step > TRIED and step % 3 == 0 else 4)


def one_has_hardly_any_that_fit(patch: pytest.MonkeyPatch, second: bool) -> list[str]:
    pair = Pair(patch, processes=2, rank=int(second), settles=False)
    return taken(pair, lambda step: 3 if second and step >= TRIED else 4, STEPS + UNFIT)


def all_leave_late(patch: pytest.MonkeyPatch, second: bool) -> list[str]:
    pair = Pair(patch, processes=2, rank=int(second), settings=OFTEN)
    return taken(pair, lambda step: 4 if step < TRIED + 9 + second else 3, STEPS + 2 * UNFIT)


def gradients_of_two_types(patch: pytest.MonkeyPatch, second: bool) -> list[str]:
    gradients = [torch.ones(2), torch.ones(3, dtype=torch.bfloat16), torch.ones(4)]
    Peers(2, torch.device("cpu")).add(gradients)
    assert all(torch.equal(gradient, torch.full_like(gradient, 2.0)) for gradient in gradients)
    return []


def weights_without_a_gradient(patch: pytest.MonkeyPatch, second: bool) -> list[str]:
    peers = Peers(2, torch.device("cpu"))
    peers.add([torch.ones(3), torch.ones(2)])
    with pytest.raises(TrainingError, match="a batch trains other weights"):
        peers.add([torch.ones(3)])
    return []


def taken(pair: Pair, size: Callable[[int], int] = lambda step: 4, steps: int = STEPS) -> list[str]:
    """Return the notes of a run, and whether its last step went through the wrapped model."""
    pair.take(steps - 1, size)
    before = pair.ours.together
    pair.take(1, size)
    pair.check()
    return [*pair.notes, "wrapped" if pair.ours.together > before else "apart"]


CASES = {
    all_replay: ("replayed|apart", "replayed|apart"),
    all_are_slower: ("a step takes 0.0 ms without|wrapped", "a step takes 0.0 ms without|wrapped"),
    one_cannot_capture: (
        "could not be captured (another process failed)|wrapped", "could not be captured (not permitted)|wrapped"
    ),
    one_waits: ("a step waits for the GPU|wrapped", "a step waits for the GPU|wrapped"),
    one_goes_wrong: ("another process has none|wrapped", "a loss of|wrapped"),
    one_goes_wrong_late: ("replayed|apart", "replayed|up to 10 steps before|apart"),
    one_has_other_sizes: ("replayed|apart", "replayed|apart"),
    one_has_hardly_any_that_fit: (
        "another process has none|wrapped", f"of {UNFIT + 1} batches, {UNFIT + 1} had|wrapped"
    ),
    all_leave_late: ("replayed|had other sizes|wrapped", "replayed|had other sizes|wrapped"),
    gradients_of_two_types: ("", ""),
    weights_without_a_gradient: ("", ""),
}  # fmt: skip


def process(rank: int, folder: Path) -> None:
    """Go through all cases as one of two processes, each with its own batches."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found = {}
    for case in CASES:
        with pytest.MonkeyPatch.context() as patch:
            found[case.__name__] = "|".join(case(patch, rank == 1))
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("processes")
    spawn(process, (folder,), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_processes_go_the_same_way(case: Any, found: list[dict[str, str]]) -> None:
    """Compare notes; the processes themselves compared weights and buffers with those of a wrapped model, to the bit."""
    for expected, notes in zip(CASES[case], found, strict=True):
        for part in expected.split("|"):
            assert part in notes[case.__name__]
