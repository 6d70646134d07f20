"""Open-loop error: actions predicted at every frame of recorded episodes, compared with the recorded ones.

All values are in the robot's units. Steps of a chunk beyond the end of an episode do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...schemas.errors import DatasetError
from ..data.dataset import LeRobotDataset
from ..data.mixture import RobotDataset
from ..policy import BasePolicyModel
from ..policy.acting.ranges import Ranges, finite
from ..policy.acting.robot_interface import BROKEN

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """One episode: recorded and predicted actions (L, A), with `execute` steps from each chunk."""

    episode: int
    true: Array
    predicted: Array
    execute: int


@dataclass(frozen=True)
class OpenLoopResult:
    """Errors over all frames of some episodes, for chunks of H steps and A action dimensions."""

    split: str
    """`validation` or `training`."""
    episodes: tuple[int, ...]
    available: int
    """Number of episodes in the split."""
    frames: int
    action_names: tuple[str, ...]
    fps: float
    mae: Array = field(repr=False)
    """Mean absolute error of each action dimension (A,)."""
    rmse: Array = field(repr=False)
    """Root mean squared error of each action dimension (A,)."""
    mae_by_step: Array = field(repr=False)
    """Mean absolute error of each step of the chunk (H, A); NaN for a step that never counts."""
    rmse_by_step: Array = field(repr=False)
    baseline_mae: Array | None = field(repr=False)
    """Mean absolute error (A,) of the mean action of the training episodes."""
    trace: Trace = field(repr=False)

    @property
    def relative(self) -> float | None:
        """Error relative to the baseline, averaged over dimensions with a baseline error above zero."""
        if self.baseline_mae is None or not (moving := self.baseline_mae > 1e-9).any():
            return None
        return float(np.mean(self.mae[moving] / self.baseline_mae[moving]))

    def to_json(self) -> dict[str, Any]:
        """Return everything but the trace, as JSON values."""
        return {
            "split": self.split,
            "episodes": list(self.episodes),
            "frames": self.frames,
            "action_names": list(self.action_names),
            "mae": self.mae.tolist(),
            "rmse": self.rmse.tolist(),
            "mae_by_step": _nullable(self.mae_by_step),
            "rmse_by_step": _nullable(self.rmse_by_step),
            "baseline_mae": None if self.baseline_mae is None else self.baseline_mae.tolist(),
            "relative_to_baseline": self.relative,
        }


def evaluate_open_loop(
    policy: BasePolicyModel,
    dataset: LeRobotDataset | RobotDataset,
    *,
    split: str = "validation",
    available: int | None = None,
    action_names: Sequence[str] | None = None,
    statistics: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> OpenLoopResult:
    """Predict a chunk at every frame of `dataset` and compare it with the recorded actions.

    Args:
        policy: The policy.
        dataset: Episodes, with the time windows of the policy. For one of several robots, only its own action
            dimensions count.
        split: Name of the split that the episodes belong to.
        available: Number of episodes in the split.
        action_names: Names of the action dimensions.
        statistics: Statistics of the policy's training data.
        batch_size: Frames per forward pass.
        seed: Seed of stochastic heads.

    Raises:
        DatasetError: The dataset has other windows or another action size than the policy.
        SpecError: An observation or a prediction is not finite, or far outside the range of training.
    """
    ranges = Ranges(statistics or {})
    horizon, size = dataset.shape("action")
    size = dataset.robot.action_dim if isinstance(dataset, RobotDataset) else size
    mean = statistics["action"]["mean"] if statistics and "action" in statistics else None
    sums = _Sums(horizon, size, mean)
    now, runner = policy.present, policy.runner()
    chunks: list[Array] = []
    done: list[Array] = []
    first_length = dataset.episode_lengths[0]
    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        for start in range(0, len(dataset), batch_size):
            samples = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
            true = torch.stack([sample["action"] for sample in samples])  # (B, H, A)
            counts = ~torch.stack([sample["action_is_pad"] for sample in samples])  # (B, H)
            for key in (key for key in samples[0] if isinstance(samples[0][key], Tensor) and key != "action"):
                observed = torch.stack([sample[key] for sample in samples])
                ranges.check(key, observed, "the dataset may be damaged")
            predicted = runner.predict(samples)
            finite(
                "action",
                predicted,
                f"predicted for frame {start} or one soon after; the weights of the policy may be damaged",
            )
            if predicted.shape != true.shape:
                raise DatasetError(
                    f"the policy predicts chunks of {tuple(predicted.shape[1:])}, the dataset has chunks of "
                    f"{tuple(true.shape[1:])}; open it with the action indices of the policy"
                )
            predicted, true = predicted[..., :size], true[..., :size]
            ranges.check("action", predicted, BROKEN)
            sums.add(predicted.double().numpy(), true.double().numpy(), counts.numpy())
            if start < first_length:
                chunks.append(predicted[: first_length - start].double().numpy())
                done.append(true[: first_length - start, now].double().numpy())
    execute = policy.execute or horizon - now
    predicted_trace = executed(np.concatenate(chunks)[:, now:], execute)
    trace = Trace(dataset.episodes[0], np.concatenate(done), predicted_trace, execute)
    return OpenLoopResult(
        split=split,
        episodes=dataset.episodes,
        available=available or len(dataset.episodes),
        frames=len(dataset),
        action_names=tuple(action_names or (f"action_{i}" for i in range(size))),
        fps=dataset.fps,
        mae=sums.mae,
        rmse=sums.rmse,
        mae_by_step=sums.mae_by_step,
        rmse_by_step=sums.rmse_by_step,
        baseline_mae=sums.baseline_mae,
        trace=trace,
    )


def executed(chunks: Array, execute: int) -> Array:
    """Return the executed actions (L, A), given the chunk predicted at each of L frames (L, H, A)."""
    return np.stack([chunks[frame - frame % execute, frame % execute] for frame in range(len(chunks))])


class _Sums:
    """Running sums of errors over the steps that count, by step of the chunk and dimension (H, A)."""

    def __init__(self, horizon: int, size: int, mean: Sequence[float] | None) -> None:
        self._absolute, self._squared, self._baseline = (np.zeros((horizon, size)) for _ in range(3))
        self._count = np.zeros((horizon, 1))
        self._mean = None if mean is None else np.asarray(mean, dtype=np.float64)

    def add(self, predicted: Array, true: Array, counts: NDArray[np.bool_]) -> None:
        """Add chunks (B, H, A) with their mask (B, H), True where a step counts."""
        weight = counts[..., None]
        error = np.where(weight, predicted - true, 0.0)
        self._absolute += np.abs(error).sum(0)
        self._squared += np.square(error).sum(0)
        self._count += weight.sum(0)
        if self._mean is not None:
            self._baseline += np.where(weight, np.abs(true - self._mean), 0.0).sum(0)

    @property
    def mae(self) -> Array:
        return np.asarray(self._absolute.sum(0) / self._count.sum())

    @property
    def rmse(self) -> Array:
        return np.asarray(np.sqrt(self._squared.sum(0) / self._count.sum()))

    @property
    def mae_by_step(self) -> Array:
        return self._absolute / np.where(self._count > 0, self._count, np.nan)

    @property
    def rmse_by_step(self) -> Array:
        return np.asarray(np.sqrt(self._squared / np.where(self._count > 0, self._count, np.nan)))

    @property
    def baseline_mae(self) -> Array | None:
        return None if self._mean is None else np.asarray(self._baseline.sum(0) / self._count.sum())


def _nullable(values: Array) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in values]
