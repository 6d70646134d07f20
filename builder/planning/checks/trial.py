"""Trial of a hand-written policy before it trains: its transforms, its collator, its loss and its actions.

Its numbers come from the training episodes; its images are random, so that no video is decoded.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....components.embodiments import EMBODIMENT
from ....schemas.errors import SpecError
from ....schemas.specs import IMAGES
from ...data.dataset import LeRobotDataset
from ...policy import BasePolicyModel, DataCollatorRegistry
from ...policy.sample_pipeline import SamplePipeline, set_mode
from ..sources import DataPlan

LARGE = 1_000_000_000
"""Number of parameters beyond which a check does not run a policy on the CPU."""
_TRAINED = 3  # calls in training mode, which differ if the transform draws noise
_CALLS = 64  # finds a change in one call of ten, except one time in 800


def try_out(policy: BasePolicyModel, data: DataPlan) -> None:
    """Run a policy as training and as a robot would, without changing its weights, buffers or mode.

    Raises:
        SpecError: It breaks the contract. Its own errors pass through.
    """
    own = _samples(data)
    name = data.sources[0].robot
    raw = own if name is None else [data.robots.find(name).to_common(sample) for sample in own]
    pipeline = policy.pipeline
    buffers = {key: value.clone() for key, value in policy.named_buffers()}
    with _keep_random_state():
        try_transforms(pipeline, raw[0], type(policy.config).__name__)
        if sum(parameter.numel() for parameter in policy.parameters()) > LARGE:
            return
        collate = DataCollatorRegistry.get(policy.config.model_type)
        try:
            batch = collate([pipeline(sample, key) for key, sample in enumerate(raw)])
            if not isinstance(batch, Mapping):
                raise SpecError(f"the collator returns {type(batch).__name__}; return a mapping, the batch")
            policy.train()
            _check_loss(policy, policy(batch))
            policy.eval()
            robot = {} if name is None else {EMBODIMENT: name}
            seen = [
                {k: v for k, v in sample.items() if k.startswith("observation.") or k == "task"} | robot
                for sample in own
            ]
            policy.chunk(seen[0])
            policy.predict([policy.to_sample(policy.admit(each, windowed=True)) for each in seen])
        finally:
            policy.eval()
            policy.reset()
            for key, value in policy.named_buffers():
                value.copy_(buffers[key])


def try_transforms(pipeline: SamplePipeline, sample: Mapping[str, Any], owner: str) -> None:
    """Raise SpecError for a transform that is random in evaluation, or irreversible for actions."""
    current: Mapping[str, Any] = pipeline.by_recipe(sample)
    for position, transform in enumerate(pipeline.own):
        called = f"transform {position} of {owner}.transform(), `{_name(transform)}`,"
        set_mode(transform, training=False)
        _seed(0)
        given = transform(_copied(current))
        if not isinstance(given, Mapping):
            raise SpecError(f"{called} returns {type(given).__name__}; return a sample, a mapping")
        for call in range(1, _CALLS):
            _seed(call)
            if _equal(given, transform(_copied(current))):
                continue
            raise SpecError(
                f"{called} is random in evaluation: {call + 1} calls with one sample differ",
                help="make it a `torch.nn.Module` that does nothing unless `self.training` (or give it `train()` and "
                "`eval()`), so that a robot's observations are not augmented",
            )
        if not _equal(given.get("action"), current.get("action")):
            _check_inverse(transform, called, current, given)
        _check_training(transform, called, current, given)
        current = given


def _check_training(transform: Any, called: str, before: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise SpecError for a transform that changes actions differently in training, noise aside."""
    set_mode(transform, training=True)
    try:
        trained = []
        for call in range(_TRAINED):
            _seed(call)
            trained.append(transform(_copied(before)).get("action"))
    finally:
        set_mode(transform, training=False)
    first = trained[0]
    if all(_equal(first, other) for other in trained[1:]) and not _equal(first, given.get("action")):
        raise SpecError(
            f"{called} changes the action differently in training and in evaluation, so the robot would get other actions "
            "than the policy learns",
            help="make both modes the same, with an `inverse`, or leave the action unchanged",
        )


def _check_inverse(transform: Any, called: str, before: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise SpecError for a transform of the action without an inverse, or with one that does not undo it."""
    if not callable(getattr(transform, "inverse", None)):
        raise SpecError(
            f"{called} changes the action and has no `inverse`, so the robot would get changed actions",
            help="add a method `inverse(sample)` that restores `sample['action']`, or leave the action unchanged",
        )
    restored = transform.inverse(_copied(given))
    action = restored.get("action") if isinstance(restored, Mapping) else None
    if not isinstance(action, Tensor):
        raise SpecError(f"`inverse` of {called} must return a sample with `action`, a tensor")
    again = transform({**_copied(before), "action": action.clone()})["action"]
    same = again.shape == given["action"].shape and torch.allclose(
        again.float(), given["action"].float(), rtol=1e-3, atol=1e-4
    )
    if action.shape != before["action"].shape or not same:
        raise SpecError(
            f"`inverse` of {called} does not restore the action: {_first(before['action'])} becomes "
            f"{_first(given['action'])}, and that {_first(action)}",
            help="`inverse` must undo what the transform does to `action`",
        )


def _check_loss(policy: BasePolicyModel, output: Any) -> None:
    """Raise SpecError for an output of `forward` without a scalar loss that depends on a trainable weight."""
    called = f"{type(policy).__name__}.forward"
    if not isinstance(output, Mapping) or not isinstance(loss := output.get("loss"), Tensor) or loss.ndim:
        found = (
            {key: tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for key, v in output.items()}
            if isinstance(output, Mapping)
            else type(output).__name__
        )
        raise SpecError(f"{called} returns {found}; return a dict with a scalar tensor `loss`")
    if not loss.requires_grad:
        raise SpecError(f"the `loss` of {called} depends on no trainable weight")
    if not loss.isfinite():
        raise SpecError(f"the `loss` of {called} is {loss.item()} on samples of the data, with random images")


def _samples(data: DataPlan) -> list[dict[str, Any]]:
    """Return two samples of the first dataset, with random images."""
    source = data.sources[0]
    dataset = LeRobotDataset(
        source.path,
        cameras=(),
        observation_indices=data.time_steps.observations,
        action_indices=data.time_steps.actions,
        episodes=source.training[:1],
    )
    drawn = torch.Generator().manual_seed(0)
    samples = []
    for index in (0, len(dataset) - 1):
        sample = dataset[index]
        for camera in source.cameras:
            spec = source.specs[f"{IMAGES}{camera}"]
            shape = [dim for dim in spec.dims[1:] if isinstance(dim, int)]
            sample[f"{IMAGES}{camera}"] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=drawn)
        samples.append(sample)
    return samples


@contextmanager
def _keep_random_state() -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def _copied(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a sample that a transform may change in place."""
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in sample.items()}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, Tensor | np.ndarray) and isinstance(other, Tensor | np.ndarray):
        first, second = torch.as_tensor(one), torch.as_tensor(other)
        if first.shape != second.shape or not first.is_floating_point():
            return torch.equal(first, second)
        return torch.allclose(first, second.to(first.dtype), rtol=0.0, atol=0.0, equal_nan=True)
    return type(one) is type(other) and bool(one == other)


def _name(transform: Any) -> str:
    return str(getattr(transform, "__name__", type(transform).__name__))


def _first(values: Tensor) -> float:
    return round(float(values.flatten()[0]), 4)


__all__ = ["LARGE", "try_out", "try_transforms"]
