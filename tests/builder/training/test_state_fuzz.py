"""A state of training with random changes either resumes, or is refused at once by the project's own error."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from policysmith.builder import Builder
from policysmith.builder.training import checkpoint
from policysmith.builder.training.checkpoint import Identity
from policysmith.builder.training.optim.build import build_optimizer
from policysmith.builder.training.optim.ema import WeightAverage
from policysmith.schemas.errors import PolicysmithError

from ..policy.mutations import at_most, bytes_changed, changed

SLOW = (pytest.mark.slow, pytest.mark.timeout(7200))


@pytest.mark.parametrize(
    ("states", "first", "count"),
    [
        ("fp32", 0, 60),
        pytest.param("fp32", 1000, 1000, marks=SLOW),
        pytest.param("8bit", 2000, 1000, marks=SLOW),
    ],
)
def test_a_changed_state_resumes_or_is_refused(
    states: str, first: int, count: int, make_tiny: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    recipe = make_tiny()
    recipe["training"] |= {"ema": 0.9, "optimizer": {"states": states}}
    builder = Builder.from_recipe(recipe)
    policy = builder.build()
    average = WeightAverage(policy, 0.9)
    section = builder.recipe.sections.training
    optimizer = build_optimizer(policy, section.optimizer, average)
    for weight in policy.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    identity = Identity(builder.recipe.resolved(), "data", 1)
    found = checkpoint.save(tmp_path, 1, policy, optimizer, average, identity)
    (found / "manifest.json").unlink()  # it would refuse all of them
    before = (found / "training.pt").read_bytes()
    state = torch.load(io.BytesIO(before), weights_only=True)
    whole = copy.deepcopy(optimizer.state_dict())
    refused = 0
    for seed in range(first, first + count):
        random = Random(seed)
        if random.random() < 0.4:
            (found / "training.pt").write_bytes(bytes_changed(before, random))
        else:
            try:
                torch.save(with_tensors(changed(state, random), random), found / "training.pt")
            except RecursionError:  # nested too deeply to be written
                continue
        try:
            with at_most(5):
                checkpoint.restore(found, policy, optimizer, average, identity)
                optimizer.step()  # where moments of other shapes end the process
        except PolicysmithError:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}") from error
        optimizer.load_state_dict(copy.deepcopy(whole))
    assert refused > count // 3


def with_tensors(state: Any, random: Random) -> Any:
    """Replace a tensor of a state, now and then, by another."""
    tensors = [item for item in held(state) if isinstance(item[0][item[1]], Tensor)]
    if not tensors or random.random() < 0.4:
        return state
    holder, key = random.choice(tensors)
    old: Tensor = holder[key]
    other, name = random.choice(tensors)
    holder[key] = random.choice(
        (
            lambda: old.half(),
            lambda: old.double(),
            lambda: old.flatten()[:-1],
            lambda: old[None],
            lambda: old.to(torch.int64),
            lambda: old.float() * float("nan"),
            lambda: -old.float() - 1,
            lambda: torch.zeros(()).expand(old.shape),
            lambda: torch.zeros(0),
            lambda: torch.zeros(10**6),
            lambda: old.to_sparse(),
            lambda: old.to(torch.complex64),
            lambda: other[name],
            lambda: old.t() if old.ndim == 2 else old,
        )
    )()
    return state


def held(value: Any) -> list[tuple[Any, Any]]:
    """Return every item of a nested value, as its holder and its key."""
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left:
        holder = left.pop()
        keys = holder if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        found += [(holder, key) for key in keys]
        left += [holder[key] for key in keys]
    return found
