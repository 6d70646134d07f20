"""A small world that every part can live in: specs, statistics, batches and features."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from policysmith.components.base import Feature
from policysmith.schemas.specs import Kind, Spec

STEPS, SIDE, STATE, HORIZON, ACTION, LENGTH = 2, 32, 5, 4, 3, 8

SPECS = {
    "observation.images.front": Spec(Kind.IMAGE, ("B", STEPS, 3, SIDE, SIDE)),
    "observation.images.wrist": Spec(Kind.IMAGE, ("B", STEPS, 3, SIDE, SIDE)),
    "observation.state": Spec(Kind.STATE, ("B", STEPS, STATE)),
    "task": Spec(Kind.TEXT, ("B",)),
    "task.input_ids": Spec(Kind.TOKEN_IDS, ("B", LENGTH), vocab=7),
    "action": Spec(Kind.ACTION, ("B", HORIZON, ACTION)),
}
FEATURES = {
    "vision.tokens": Spec(Kind.TOKENS, ("B", 6, 10), grid=(1, 2, 3)),
    "state.pooled": Spec(Kind.POOLED, ("B", 7)),
    "action": SPECS["action"],
}
OF_MODELS = {
    "model.queries": Spec(Kind.TOKENS, ("B", 8, 12)),
    "model.layers": Spec(Kind.LAYERS, ("B", 2, 6, 12)),
    "model.key_values": Spec(Kind.KEY_VALUES, ("B", 2, 2, 1, 6, 8), rope=10_000.0),
}


def _statistics() -> dict[str, Any]:
    held = {"mean": 0.3, "std": 2.0, "min": -4.0, "max": 6.0, "q01": -3.5, "q99": 5.0}
    widths = {"observation.state": STATE, "action": ACTION}
    return {key: {name: [value] * width for name, value in held.items()} for key, width in widths.items()}


def _batch(size: int = 3, device: str = "cpu", seed: int = 0, floats: bool = False) -> dict[str, Any]:
    with torch.device("cpu"):
        random = torch.Generator().manual_seed(seed)
        images = {
            key: torch.randint(0, 256, (size, STEPS, 3, SIDE, SIDE), dtype=torch.uint8, generator=random)
            for key, spec in SPECS.items()
            if spec.kind is Kind.IMAGE
        }
        tensors: dict[str, torch.Tensor] = {
            **({key: value / 127.5 - 1.0 for key, value in images.items()} if floats else images),
            "observation.state": torch.randn(size, STEPS, STATE, generator=random),
            "task.input_ids": torch.randint(0, 7, (size, LENGTH), generator=random),
            "task.attention_mask": (torch.arange(LENGTH) < torch.arange(3, 3 + size)[:, None]).long(),
            "action": torch.randn(size, HORIZON, ACTION, generator=random),
            "action_is_pad": torch.arange(HORIZON) >= HORIZON - torch.arange(size)[:, None],
        }
    batch: dict[str, Any] = {key: value.to(device) for key, value in tensors.items()}
    return {**batch, "task": [f"open the drawer {index}" for index in range(size)]}


def _features(size: int = 3, device: str = "cpu", seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randn(size, 6, 10, generator=random).to(device, dtype)
    pooled = torch.randn(size, 7, generator=random).to(device, dtype)
    queries = torch.randn(size, 8, 12, generator=random).to(device, dtype)
    layers = torch.randn(size, 2, 6, 12, generator=random).to(device, dtype)
    key_values = torch.randn(size, 2, 2, 1, 6, 8, generator=random).to(device, dtype)
    mask = (torch.arange(6) < torch.arange(3, 3 + size)[:, None]).to(device)
    return {
        "vision.tokens": Feature(tokens, mask),
        "state.pooled": Feature(pooled),
        "model.queries": Feature(queries),
        "model.layers": Feature(layers, mask),
        "model.key_values": Feature(key_values, mask, mask.sum(1)),
    }


def _is_pad(batch: dict[str, Any]) -> torch.Tensor:
    """(B, H, A): steps after the end, and in the last sample the last dimension."""
    is_pad = batch["action_is_pad"][..., None].expand_as(batch["action"]).clone()
    is_pad[-1, :, -1] = True
    return is_pad


@pytest.fixture
def world() -> SimpleNamespace:
    """Specs (of tokens and pooled features, and of every kind), statistics, `batch(size, device, seed, floats)`, its `is_pad(batch)`, and `features(size, device, seed, dtype)`."""
    return SimpleNamespace(
        specs=dict(SPECS),
        feature_specs=dict(FEATURES),
        every_feature={**FEATURES, **OF_MODELS},
        facts={"statistics": _statistics()},
        batch=_batch,
        features=_features,
        is_pad=_is_pad,
    )


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tensors here are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from one seed, and leaves no other state behind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
