"""A hash of everything that the features of frozen backbones depend on."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from ...policy import RecipePolicy
from ...provenance import package_version

_FORMAT = 1


def feature_key(
    policy: RecipePolicy,
    names: Sequence[str],
    dropped: Iterable[str],
    fingerprint: str,
    precision: str | None,
) -> str:
    """Return the name of a table: a hash of weights, transforms, precision, versions, code, and data.

    `fingerprint` identifies the data, and `dropped` the keys of a batch that the table does not hold.
    """
    content = policy.config.recipe or {}
    hash_input = {
        "format": _FORMAT,
        "data": [fingerprint, {**content["data"], "path": None}, content["collator"]],
        "transforms": content["transforms"],
        "backbones": {name: content["policy"]["backbones"][name] for name in names},
        "outputs": {name: policy.dependencies.outputs_of(name) for name in names},
        "facts": [policy.config.facts, policy.config.statistics],
        "dropped": sorted(dropped),
        "precision": precision,
        "versions": {**(policy.config.provenance or {}).get("versions", {}), **_versions()},
        "code": _code(policy),
        "weights": {name: _digest(policy.backbones[name]) for name in names},
    }
    text = json.dumps(hash_input, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _versions() -> dict[str, str | None]:
    """Return the versions of the packages that decode and tokenize."""
    return {name: package_version(name) for name in ("av", "torchvision", "tokenizers")}


def _code(policy: RecipePolicy) -> str:
    """Hash the code that features may depend on: parts, data and policy, and files of custom parts."""
    builder = Path(__file__).resolve().parents[2]
    folders = [builder.parent / "components", builder / "data", builder / "policy"]
    files = {file for folder in folders for file in folder.rglob("*.py")}
    for part in (*policy.transforms, *policy.backbones.values(), policy.collator):
        with suppress(TypeError, OSError):
            files.add(Path(inspect.getfile(type(part))).resolve())
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _digest(module: nn.Module) -> str:
    """Hash a module's parameters and buffers, in threads: there may be gigabytes of them."""
    with ThreadPoolExecutor() as threads:
        digests = threads.map(_tensor_digest, *zip(*sorted(module.state_dict().items()), strict=True))
        return hashlib.sha256(b"".join(digests)).hexdigest()


def _tensor_digest(name: str, value: Tensor) -> bytes:
    digest = hashlib.sha256(f"{name} {value.dtype} {tuple(value.shape)}".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
