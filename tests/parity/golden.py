"""Goldens: what an original implementation computed, and the recipe that gives both sides the same weights.

A golden is `goldens/<name>.safetensors` with tensors named `<group>/<key>`, and `goldens/<name>.json` with the config,
the versions, and names and shapes of the weights. Weights and images are not stored: `fill` and `uniform` make them
from their names. Groups are `input`, `draw` (the random numbers that were used), `output`, and `gradient`.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "goldens"
CODES = "_codebook.embed"
WHOLE_GRADIENT = 512
"""Gradients of at most so many elements are stored; of larger ones, a digest."""


def uniform(name: str, shape: Sequence[int]) -> Tensor:
    """Independent values of mean 0 and variance 1, the same for a name on every platform: float32 `shape`.

    The raw stream of numpy's Philox is fixed for good; its distributions are not, so they are not used.
    """
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(math.prod(shape))
    unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return torch.from_numpy((math.sqrt(3.0) * (2.0 * unit - 1.0)).astype(np.float32)).reshape(tuple(shape))


def fill(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return weights for names and shapes."""
    return {name: _weight(name, shape) for name, shape in shapes.items()}


def _weight(name: str, shape: Sequence[int]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros(tuple(shape), dtype=torch.int64)
    values = uniform(name, shape)
    if name.endswith(CODES):
        return values
    if len(shape) > 1:
        by_category = len(shape) == 3 and name.endswith(".W")  # (categories, in, out)
        return values / math.sqrt(shape[1] if by_category else math.prod(shape[1:]))
    gemma = "norm" in name and ("language_model" in name or "gemma_expert" in name)  # scales by 1 + w
    return 0.1 * values if gemma or name.endswith(("bias", "running_mean")) else 1.0 + 0.1 * values


def refill(module: nn.Module) -> dict[str, list[int]]:
    """Give a module the weights of `fill`, in place; returns names and shapes.

    Buffers are computed, not learned: they are left, but for the statistics of batch norms and the codes of
    codebooks. Of weights that are shared, the first name is meant.
    """
    learned = dict(module.named_parameters())
    state = {
        name: value
        for name, value in module.state_dict().items()
        if name in learned or name.endswith(CODES) or _beside_running_mean(name, module)
    }
    weights = fill({name: list(value.shape) for name, value in state.items()})
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(weights[name])
    return {name: list(value.shape) for name, value in weights.items()}


def _beside_running_mean(name: str, module: nn.Module) -> bool:
    owner = module.get_submodule(name.rpartition(".")[0])
    return "running_mean" in dict(owner.named_buffers(recurse=False))


@contextmanager
def recording(*names: str, seed: int = 0) -> Iterator[dict[str, Tensor]]:
    """Seed torch and record what `torch.<name>` returns, as `<name>.<count>`, while the block runs."""
    draws: dict[str, Tensor] = {}

    def recorder(name: str) -> Callable[..., Tensor]:
        original = getattr(torch, name)

        def drawn(*args: Any, **kwargs: Any) -> Tensor:
            value: Tensor = original(*args, **kwargs)
            draws[f"{name}.{sum(key.startswith(f'{name}.') for key in draws)}"] = value.detach().clone()
            return value

        return drawn

    torch.manual_seed(seed)
    with ExitStack() as patches:
        for name in names:
            patches.enter_context(mock.patch.object(torch, name, recorder(name)))
        yield draws


def digest(name: str, gradient: Tensor) -> Tensor:
    """Return the digest of a gradient: all of it if small, else its norm and product with `uniform(name)`."""
    if gradient.numel() <= WHOLE_GRADIENT:
        return gradient
    flat = gradient.double().flatten()
    return torch.stack([flat.norm(), flat @ uniform(name, flat.shape).double()]).float()


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Return digests of the gradients of `backward`, by name."""
    return {
        name: digest(name, parameter.grad).detach().clone()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


@dataclass(frozen=True)
class Golden:
    """A golden that was loaded."""

    inputs: dict[str, Tensor]
    draws: dict[str, Tensor]
    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The options of the original."""
        config: dict[str, Any] = self.facts["config"]
        return config

    def weights(self) -> dict[str, Tensor]:
        """Return the weights, under the names of the original's state dict."""
        return fill(self.facts["weights"])


def load(name: str) -> Golden:
    """Load a golden, and generate the inputs that are not stored."""
    facts = json.loads((FOLDER / f"{name}.json").read_text())
    groups: dict[str, dict[str, Tensor]] = {"input": {}, "draw": {}, "output": {}, "gradient": {}}
    for key, value in load_file(FOLDER / f"{name}.safetensors").items():
        group, _, rest = key.partition("/")
        groups[group][rest] = value
    made = {key: uniform(f"input/{key}", shape) for key, shape in facts["made_inputs"].items()}
    return Golden({**groups["input"], **made}, groups["draw"], groups["output"], groups["gradient"], facts)


def save(
    name: str,
    *,
    config: Mapping[str, Any],
    weights: Mapping[str, Sequence[int]],
    inputs: Mapping[str, Tensor],
    made_inputs: Mapping[str, Sequence[int]] | None = None,
    draws: Mapping[str, Tensor] | None = None,
    outputs: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor] | None = None,
    note: str = "",
) -> None:
    """Write a golden; `made_inputs` are those that `uniform("input/<key>", shape)` makes again."""
    groups = {"input": inputs, "draw": draws or {}, "output": outputs, "gradient": gradients or {}}
    tensors = {
        f"{group}/{key}": value.detach().contiguous().clone()
        for group, values in groups.items()
        for key, value in values.items()
        if key not in (made_inputs or {})
    }
    facts = {
        "note": note,
        "config": dict(config),
        "versions": _versions("lerobot", "torch", "transformers", "diffusers"),
        "made_inputs": {key: list(shape) for key, shape in (made_inputs or {}).items()},
        "weights": {key: list(shape) for key, shape in weights.items()},
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.safetensors").write_bytes(serialize(tensors))
    text = re.sub(r"\[[\d\s,]+\]", lambda found: " ".join(found[0].split()), json.dumps(facts, indent=1))
    (FOLDER / f"{name}.json").write_text(text + "\n")


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found
