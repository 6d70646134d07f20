"""Policies travel: to loader workers, through `torch.save`, as deep copies."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from policysmith.builder import Builder, RecipePolicy

Batches = Callable[..., dict[str, Any]]


@pytest.fixture
def policy(tiny: dict[str, Any]) -> RecipePolicy:
    policy = Builder.from_recipe(tiny).build()
    assert isinstance(policy, RecipePolicy)
    return policy


class Acting(Dataset[torch.Tensor]):
    """Runs a policy in the worker that it was sent to."""

    def __init__(self, policy: RecipePolicy, batch: dict[str, Any]) -> None:
        self.policy, self.batch = policy, batch

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        torch.set_num_threads(1)
        actions = self.policy.inference(self.batch)
        return actions if type(self.policy).__name__ == "PolicysmithTinyPolicy" else actions * torch.nan


class First:
    """A collator that a spawned process can import."""

    def __call__(self, samples: list[torch.Tensor]) -> torch.Tensor:
        return samples[0]


def test_a_spawned_loader_worker_receives_the_policy(policy: RecipePolicy, batch: Batches) -> None:
    loader = DataLoader(
        Acting(policy, batch()), num_workers=1, multiprocessing_context="spawn", collate_fn=First()
    )
    (actions,) = loader
    assert torch.equal(actions, policy.inference(batch()))


def test_a_deep_copy_is_equal_and_its_own(policy: RecipePolicy, batch: Batches) -> None:
    twin = copy.deepcopy(policy)
    assert type(twin) is type(policy)
    assert torch.equal(twin.inference(batch()), policy.inference(batch()))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not torch.equal(twin.inference(batch()), policy.inference(batch()))


def test_torch_save_and_pickle_keep_the_policy(policy: RecipePolicy, batch: Batches) -> None:
    file = io.BytesIO()
    torch.save(policy, file)
    file.seek(0)
    for copied in (torch.load(file, weights_only=False), pickle.loads(pickle.dumps(policy))):
        assert type(copied) is type(policy)
        assert copied.config.to_dict() == policy.config.to_dict()
        assert torch.equal(copied.inference(batch()), policy.inference(batch()))


def test_its_state_dict_holds_no_code(policy: RecipePolicy, batch: Batches) -> None:
    file = io.BytesIO()
    torch.save(policy.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(twin.inference(batch()), policy.inference(batch()))
