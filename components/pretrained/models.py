"""Configs, weights and tokenizers of pretrained models of transformers.

A part names a model in one of two ways:

    pretrained: google/paligemma-3b-pt-224      # its architecture and its weights
    architecture: google/paligemma-3b-pt-224    # its architecture alone, with random initial weights

Either names a model on the hub or a directory. `components/pretrained/architectures` bundles the
architectures of some models of the hub, so recipes with them are checked and built without a network. One
small tokenizer, `policysmith/tiny`, is bundled as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    ImageProcessingMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from ...schemas.errors import SpecError, WeightsError
from ...schemas.paths import exists, expanded

_ARCHITECTURES = Path(__file__).parent / "architectures"
_TOKENIZERS = Path(__file__).parent / "tokenizers"
_LEFT_OUT = ("_name_or_path", "architectures", "transformers_version", "dtype", "id2label", "label2id")
_OFFLINE = "check the name, or download it elsewhere and use its directory"


def source_of(config: Any) -> str:
    """Return the model that `pretrained` or `architecture` names; raise SpecError unless one is set."""
    given = [name for name in ("pretrained", "architecture") if getattr(config, name) is not None]
    if len(given) == 1:
        return str(getattr(config, given[0]))
    if given:
        raise SpecError(
            "`pretrained` and `architecture` are both set",
            field="architecture",
            label="set one of the two",
            help="`pretrained` takes architecture and weights, `architecture` starts from random weights",
        )
    raise SpecError(
        f"`{config.type}` needs a model for its architecture",
        field="type",
        label="no model",
        help="set `pretrained` to a model on the hub or a directory, or `architecture` to start from random weights",
    )


def resolve_source(source: str) -> str:
    """Return the directory that `source` names, with `~` expanded, or the name of a model on the hub.

    Raises:
        WeightsError: The path does not exist.
    """
    path = expanded(source)
    if exists(path):
        return str(path)
    if source.count("/") > 1 or source.startswith(("/", ".", "~")) or "\\" in source:
        raise WeightsError(
            f"directory `{source}` does not exist; use the directory of a model, or its name on the hub"
        )
    return source


def read_config(
    source: str, types: tuple[str, ...], otherwise: str, part: str | None = None
) -> dict[str, Any]:
    """Return the config of a model on the hub or in a directory, or of one `part` of it, as in CLIP.

    A directory precedes a bundled architecture, which precedes the hub, so bundled models never depend on the
    network.

    Raises:
        WeightsError: The config is unreadable, or its `model_type` is not among `types`.
    """
    held = _bundled(source)
    if held is None:
        held = _from_source(source)
    if part is not None and held["model_type"] not in types:
        held = held.get(part, held)
    if held["model_type"] not in types:
        raise WeightsError(
            f"`{source}` is a `{held['model_type']}` model, expected one of {', '.join(types)}; {otherwise}"
        )
    return {key: value for key, value in held.items() if key not in _LEFT_OUT}


def read_tokenizer(source: str) -> Any:
    """Load a tokenizer from the hub, a directory, or the bundle; raise WeightsError if it is unreadable."""
    bundled = _TOKENIZERS / source.replace("/", "--")
    try:
        return AutoTokenizer.from_pretrained(
            str(bundled) if bundled.is_dir() and not Path(source).exists() else resolve_source(source),
            trust_remote_code=False,
        )
    except (OSError, ValueError, ImportError) as error:
        raise WeightsError(
            f"cannot read the tokenizer `{source}`: {_first_line(error)} ({_OFFLINE})"
        ) from error


def as_config(held: Mapping[str, Any]) -> PreTrainedConfig:
    """Build the config of transformers from JSON; nested configs are built by their own `model_type`."""
    parts = {
        key: as_config(value)
        for key, value in held.items()
        if isinstance(value, dict) and value.get("model_type") in CONFIG_MAPPING
    }
    options = {key: value for key, value in held.items() if key != "model_type"}
    config: PreTrainedConfig = CONFIG_MAPPING[held["model_type"]].from_dict({**options, **parts})
    return config


def _bundled(source: str) -> dict[str, Any] | None:
    path = _ARCHITECTURES / f"{source.replace('/', '--')}.json"
    if Path(source).exists() or source.count("/") != 1 or not path.is_file():
        return None
    held: dict[str, Any] = json.loads(path.read_text())
    if held["model_type"] not in CONFIG_MAPPING:
        return held  # a model unknown to transformers
    return _full_config(as_config(held))


def _from_source(source: str) -> dict[str, Any]:
    try:
        return _full_config(AutoConfig.from_pretrained(resolve_source(source), trust_remote_code=False))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"cannot read the config of `{source}`: {_first_line(error)} ({_OFFLINE})"
        ) from error


def read_normalization(source: str) -> dict[str, list[float]]:
    """Return `mean` and `std` of each channel of images in [0, 1] in a model's training, if known."""
    try:
        held, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except (OSError, ValueError):
        return {}
    if not held.get("do_normalize", True):
        return {"mean": [0.0] * 3, "std": [1.0] * 3}
    mean, std = held.get("image_mean"), held.get("image_std")
    if not isinstance(mean, list) or not isinstance(std, list) or not len(mean) == len(std) == 3:
        return {}
    return {"mean": mean, "std": std}


def _full_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Return all values of a config, including defaults."""
    held: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return held


def copy_transformer(source: str, model: PreTrainedModel, **options: Any) -> None:
    """Copy weights of `source` into `model`; tensors on the meta device stay there.

    Raises:
        WeightsError: A weight is missing or has another shape.
    """
    try:
        loader: Any = type(model)
        with _quiet():
            loaded, report = loader.from_pretrained(
                resolve_source(source),
                config=model.config,
                output_loading_info=True,
                dtype="float32",
                trust_remote_code=False,
                **options,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(
            f"cannot load the weights of `{source}`: {_first_line(error)} ({_OFFLINE})"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise WeightsError(
            f"`{source}` lacks {len(missing)} tensors of {type(model).__name__}, the first is `{missing[0]}`; "
            "it is not a checkpoint of this model"
        )
    wanted = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        if not wanted[name].is_meta:
            wanted[name].copy_(tensor)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress progress bars and the report on unused tensors while the context is active."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
