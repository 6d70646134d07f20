"""Open-loop errors against sums made by hand, one frame and one dim at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from policysmith.builder import Builder
from policysmith.builder.data.dataset import LeRobotDataset
from policysmith.builder.evaluation.open_loop import evaluate_open_loop, executed
from policysmith.schemas.errors import DatasetError


class Recorded:
    """Two episodes of a point on a plane, as `LeRobotDataset` gives them; padding holds absurd actions."""

    episodes, episode_lengths, fps = (3, 7), (5, 6), 10.0
    names = ("x", "y")

    def __init__(self, horizon: int = 4) -> None:
        generator = torch.Generator().manual_seed(0)
        self.horizon = horizon
        self.states = torch.rand(11, 4, generator=generator)
        self.actions = torch.rand(11, 2, generator=generator) - 0.5

    def __len__(self) -> int:
        return 11

    def shape(self, key: str) -> tuple[int, int]:
        assert key == "action"
        return self.horizon, 2

    def __getitem__(self, row: int) -> dict[str, Any]:
        last = 4 if row < 5 else 10
        rows = torch.arange(row, row + self.horizon)
        is_pad = rows > last
        action = self.actions[rows.clamp(max=last)].clone()
        action[is_pad] = 1e6
        return {
            "observation.state": self.states[row][None],
            "action": action,
            "action_is_pad": is_pad,
            "task": "Reach the goal",
        }


def judge(policy: Any, dataset: Any, **options: Any) -> Any:
    return evaluate_open_loop(policy, dataset, **options)


def test_padding_does_not_count_and_numbers_are_those_of_slow_sums(make_policy: Callable[..., Any]) -> None:
    data, policy = Recorded(), make_policy("expert", side=None, execute=3)
    mean = [0.1, -0.2]
    result = judge(policy, data, statistics={"action": {"mean": mean}}, action_names=data.names, batch_size=4)
    errors: dict[tuple[int, int], list[float]] = {}
    constant: list[list[float]] = [[], []]
    for row in range(11):
        sample = data[row]
        chunk = policy.inference({"observation.state": sample["observation.state"][None]})[0].detach()
        for step in range(4):
            for dim in range(2):
                if not sample["action_is_pad"][step]:
                    true = float(sample["action"][step, dim])
                    errors.setdefault((step, dim), []).append(float(chunk[step, dim]) - true)
                    constant[dim].append(abs(true - mean[dim]))
    by_dim = [[e for (_, d), values in errors.items() if d == dim for e in values] for dim in range(2)]
    assert result.mae == pytest.approx([np.mean(np.abs(e)) for e in by_dim])
    assert result.rmse == pytest.approx([np.sqrt(np.mean(np.square(e))) for e in by_dim])
    for (step, dim), values in errors.items():
        assert result.mae_by_step[step, dim] == pytest.approx(np.mean(np.abs(values)))
        assert result.rmse_by_step[step, dim] == pytest.approx(np.sqrt(np.mean(np.square(values))))
    assert result.baseline_mae == pytest.approx([np.mean(c) for c in constant])
    assert len(errors[3, 0]) == 11 - 2 * 3
    assert (result.frames, result.episodes, result.trace.episode) == (11, (3, 7), 3)
    assert result.trace.true == pytest.approx(data.actions[:5].double().numpy())
    assert all(look["action"].isnan().all() for look in policy.looks[:3])


def test_a_composed_policy_is_judged_in_the_units_of_the_robot(tiny: dict[str, Any]) -> None:
    builder = Builder.from_recipe(tiny).override({"data.episodes": [0, 1]})
    policy, (dataset, _) = builder.build(), builder.datasets()
    assert isinstance(dataset, LeRobotDataset)
    result = judge(policy, dataset, split="training", statistics=policy.config.statistics, batch_size=50)
    wrong, count = np.zeros(4), 0
    for row in range(len(dataset)):
        sample = dataset[row]
        chunk = policy.inference(policy.collator([sample]))[0]
        keep = ~sample["action_is_pad"]
        wrong += (chunk - sample["action"])[keep].abs().double().sum(0).numpy()
        count += int(keep.sum())
    assert result.mae == pytest.approx(wrong / count, rel=1e-4, abs=1e-6)
    assert len(result.trace.true) == len(result.trace.predicted) == dataset.episode_lengths[0]
    assert result.trace.execute == 2
    assert 0.0 < result.relative < 10.0


def test_the_trace_runs_each_chunk_for_as_long_as_the_robot_would() -> None:
    chunks = np.array([[[10.0 * frame + step] for step in range(4)] for frame in range(7)])
    assert executed(chunks, 3)[:, 0].tolist() == [0, 1, 2, 30, 31, 32, 60]
    assert executed(chunks, 4)[:, 0].tolist() == [0, 1, 2, 3, 40, 41, 42]


def test_stochastic_policies_give_the_same_numbers_again(make_policy: Callable[..., Any]) -> None:
    policy = make_policy("random", side=None)
    torch.manual_seed(1)
    first = judge(policy, Recorded())
    state = torch.get_rng_state()
    again = judge(policy, Recorded())
    assert np.array_equal(first.mae, again.mae)
    assert torch.equal(state, torch.get_rng_state())


def test_other_windows_are_refused(make_policy: Callable[..., Any]) -> None:
    with pytest.raises(DatasetError, match=r"chunks of \(4, 2\), the dataset has chunks of \(6, 2\)"):
        judge(make_policy("expert", side=None), Recorded(horizon=6))
