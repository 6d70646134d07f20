"""The state of training in a checkpoint, checked against the run before any of it is used."""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...schemas.errors import CheckpointError
from ..policy.storage.saving import STATE
from ..runs import step_of
from .optim.ema import WeightAverage

_KEYS = {"step", "optimizer", "average", "weights", "identity"}
_MOMENTS = ("exp_avg", "exp_avg_sq")
_UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.PickleError,
    zipfile.BadZipFile,
)
"""Errors of torch for bytes that are not a state."""


def damaged(checkpoint: Path, how: str) -> CheckpointError:
    """Return the error for a state that does not fit."""
    return CheckpointError(
        f"{checkpoint / STATE} is damaged ({how}); remove {checkpoint} to resume from the one before"
    )


def load(checkpoint: Path) -> dict[str, Any]:
    """Load the state of training in a checkpoint, and check its keys and kinds of values.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    path = checkpoint / STATE
    if not path.exists():
        raise CheckpointError(f"{path} is missing: {checkpoint} can be used, but not resumed from")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise damaged(checkpoint, str(error).partition("\n")[0][:200] or type(error).__name__) from error
    if not isinstance(state, dict) or state.keys() != _KEYS:
        raise damaged(checkpoint, f"it must hold {', '.join(sorted(_KEYS))}")
    identity, step = state["identity"], state["step"]
    if type(step) is not int or step < 0:
        raise damaged(checkpoint, f"its step is {step!r}")
    if (named := step_of(checkpoint)) is not None and named != step:
        raise damaged(checkpoint, f"its step is {step}")
    if (
        not isinstance(identity, dict)
        or not isinstance(identity.get("data"), str)
        or type(identity.get("world_size")) is not int
        or not _is_recipe(identity.get("recipe"))
    ):
        raise damaged(checkpoint, "it does not name its run")
    return state


def check(
    checkpoint: Path,
    state: Mapping[str, Any],
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
) -> None:
    """Raise CheckpointError unless moments and averages fit the weights by name, shape, dtype and value."""
    try:
        _check_groups(state["optimizer"], optimizer)
        _check_moments(state["optimizer"]["state"], optimizer, state["step"])
        _check_average(state, policy, average)
    except _MisfitError as misfit:
        raise damaged(checkpoint, str(misfit)) from None


def check_weights(checkpoint: Path, weights: Mapping[str, Tensor], policy: nn.Module) -> None:
    """Raise CheckpointError for weights of another dtype than the run's."""
    for name, value in policy.state_dict().items():
        if name in weights and weights[name].dtype != value.dtype:
            raise CheckpointError(
                f"{checkpoint}: `{name}` is {_name(weights[name].dtype)} there and {_name(value.dtype)} in the run; "
                "use another checkpoint of the run"
            )


_ADAMW_FLAGS = frozenset(
    ("amsgrad", "capturable", "decoupled_weight_decay", "differentiable", "foreach", "fused", "maximize")
)
"""Entries of a group that `torch.optim.AdamW` fills in for checkpoints of older versions (torch 2.14)."""


class _MisfitError(Exception):
    """Raised when a state does not fit the policy or the optimizer."""


def _check_groups(held: Any, optimizer: torch.optim.Optimizer) -> None:
    own = _groups_of(optimizer)
    groups = held.get("param_groups") if isinstance(held, dict) else None
    if not isinstance(groups, list) or len(groups) != len(own) or not isinstance(held.get("state"), dict):
        raise _MisfitError(f"its optimizer must have {len(own)} groups of weights, and a state")
    for number, (group, mine) in enumerate(zip(groups, own, strict=True)):
        if not isinstance(group, dict) or not mine.keys() >= {"params", "names"} <= group.keys():
            raise _MisfitError(f"group {number} of its optimizer lists no weights")
        rate = group.get("lr")
        if not isinstance(rate, (int, float)) or not math.isfinite(rate):
            raise _MisfitError(f"the rate of group {number} of its optimizer is {rate!r}")
        if missing := mine.keys() - group.keys() - _ADAMW_FLAGS:
            raise _MisfitError(f"group {number} of its optimizer lacks `{min(missing)}`")
        for key in (mine.keys() & group.keys()) - {"lr"}:
            if not _equal(group[key], mine[key]):
                raise _MisfitError(f"`{key}` of group {number} of its optimizer is not that of the run")


def _groups_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the groups as a state dict holds them, without gathering sharded tensors."""
    found, start = [], 0
    for group in optimizer.param_groups:
        count = len(group["params"])
        found.append({**group, "params": list(range(start, start + count))})
        start += count
    return found


def _check_moments(held: Mapping[Any, Any], optimizer: torch.optim.Optimizer, steps: int) -> None:
    names = [name for group in optimizer.param_groups for name in group["names"]]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    seen: set[int] = set()
    for key, moments in held.items():
        if type(key) is not int or not 0 <= key < len(weights):
            raise _MisfitError(
                f"its optimizer has a state of a weight {key!r}, and the run has {len(weights)}"
            )
        name, weight = names[key], weights[key]
        if not isinstance(moments, dict) or moments.keys() != {"step", *_MOMENTS}:
            raise _MisfitError(f"the state of `{name}` must have step, {', '.join(_MOMENTS)}")
        _check_count(name, moments["step"], steps)
        for moment in _MOMENTS:
            _check_tensor(f"`{moment}` of `{name}`", moments[moment], weight.shape, weight.dtype, seen)
        if moments["exp_avg_sq"].numel() and moments["exp_avg_sq"].min() < 0:
            raise _MisfitError(f"`exp_avg_sq` of `{name}` is negative somewhere")


def _check_count(name: str, count: Any, steps: int) -> None:
    number = count
    if isinstance(count, Tensor):
        if count.layout != torch.strided or count.numel() != 1 or count.is_complex():
            raise _MisfitError(f"the step of `{name}` is not a number")
        number = count.item()
    if type(number) not in (int, float) or not (0 <= number <= steps and number == int(number)):
        raise _MisfitError(f"the step of `{name}` is {number!r}, of {steps}")


def _check_average(state: Mapping[str, Any], policy: nn.Module, average: WeightAverage | None) -> None:
    own = dict(policy.named_parameters())
    for key in ("average", "weights"):
        held = state[key]
        if average is None:
            if held is not None:
                raise _MisfitError(f"it holds `{key}`, and the run averages no weights")
            continue
        names = average.names
        if not isinstance(held, dict) or held.keys() != set(names):
            raise _MisfitError(f"its `{key}` must be of the {len(names)} weights that the run averages")
        seen: set[int] = set()
        for name in names:
            dtype = torch.float32 if key == "average" else own[name].dtype
            _check_tensor(f"`{name}` of `{key}`", held[name], own[name].shape, dtype, seen)


def _check_tensor(what: str, value: Any, shape: Sequence[int], dtype: torch.dtype, seen: set[int]) -> None:
    """Raise _MisfitError unless a value is a finite tensor of this shape and dtype, in its own memory."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        raise _MisfitError(f"{what} is not a tensor")
    if value.shape != torch.Size(shape):
        raise _MisfitError(f"{what} has the shape {tuple(value.shape)}, and the weight {tuple(shape)}")
    if value.dtype != dtype:
        raise _MisfitError(f"{what} is {_name(value.dtype)}, not {_name(dtype)}")
    storage = value.untyped_storage()
    if storage.nbytes() < value.numel() * value.element_size() or (
        value.numel() and storage.data_ptr() in seen
    ):
        raise _MisfitError(f"{what} shares its memory")
    seen.add(storage.data_ptr())
    if not value.isfinite().all():
        raise _MisfitError(f"{what} is not finite")


def _is_recipe(value: Any) -> bool:
    """Return whether a value is a recipe with all keys that are read."""
    training = value.get("training") if isinstance(value, dict) else None
    return isinstance(training, dict) and type(training.get("steps")) is int


def _equal(one: Any, other: Any) -> bool:
    """Compare values of any type, such as tensors, where a tuple may have become a list."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and not isinstance(one, Tensor) and bool(one == other)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
