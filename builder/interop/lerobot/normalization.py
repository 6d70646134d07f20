"""Conversion of LeRobot's normalization to transforms, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....schemas.errors import WeightsError
from ...data.statistics import Statistics

_MODES = {"MEAN_STD": "mean_std", "MIN_MAX": "min_max", "QUANTILES": "quantiles", "IDENTITY": "identity"}
_NEEDS = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99")}
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_TRAINING_ONLY = ("color_jitter", "random_shift")
_EPS, _SPREAD = 1e-8, 1e-2


def transforms(config: Mapping[str, Any], statistics: Statistics) -> tuple[list[dict[str, Any]], Statistics]:
    """Return transforms equivalent to the processor of a policy, and their statistics.

    Raises:
        WeightsError: The normalization has no counterpart.
    """
    features = {**config["input_features"], **config["output_features"]}
    modes = {key: _mode(key, feature["type"], config, statistics) for key, feature in features.items()}
    found: list[dict[str, Any]] = []
    for camera in (key for key, feature in features.items() if feature["type"] == "VISUAL"):
        options = _of_image(modes[camera], statistics.get(camera, {}))
        same = next((other for other in found if {**other, "keys": None} == {**options, "keys": None}), None)
        if same is None:
            found.append({**options, "keys": [camera]})
        else:
            same["keys"].append(camera)
    vectors = {key: mode for key, mode in modes.items() if features[key]["type"] != "VISUAL"}
    held = {key: statistics[key] for key, mode in vectors.items() if mode != "IDENTITY"}
    for key in held.keys() - config["output_features"].keys():
        held[key] = _widened_above(held[key], vectors[key])
    if held:
        ours = {key: _MODES[mode] for key, mode in vectors.items()}
        mode = max(ours.values(), key=list(ours.values()).count)
        differing = {key: other for key, other in ours.items() if other != mode}
        found.append({"type": "normalize", "keys": list(ours), "mode": mode, "modes": differing})
    return found, held


def processor(
    content: Mapping[str, Any], features: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, str], Statistics]:
    """Return LeRobot's `normalization_mapping` and statistics for the transforms of a policy's config.

    Raises:
        WeightsError: A transform has no counterpart in LeRobot's processor.
    """
    modes: dict[str, str] = dict.fromkeys(features, "IDENTITY")
    statistics: Statistics = {}
    for raw in content["recipe"]["transforms"]:
        if raw["type"] == "normalize_image":
            mean, std = _constants(raw)
            for key in _keys(raw, features, images=True):
                if (mean, std) != ([0.0] * 3, [1.0] * 3):
                    modes[key], statistics[key] = "MEAN_STD", {"mean": mean, "std": std}
        elif raw["type"] == "normalize":
            if raw["dims"]:
                raise WeightsError(
                    "LeRobot normalizes whole keys, but `dims` of `normalize` sets modes of single dimensions"
                )
            for key in _keys(raw, features, images=False):
                mode = raw["modes"].get(key, raw["mode"])
                modes[key] = next((theirs for theirs, ours in _MODES.items() if ours == mode), "")
                if not modes[key]:
                    raise WeightsError(f"LeRobot's processor has no normalization `{mode}`")
                if mode != "identity":
                    held = content["statistics"][key]
                    statistics[key] = held if key == "action" else _widened(held, modes[key])
        elif raw["type"] not in _TRAINING_ONLY:
            raise WeightsError(f"LeRobot's processor has no transform like `{raw['type']}`")
    mapping: dict[str, str] = {}
    for key, mode in modes.items():
        kind = features[key]["type"]
        if mapping.setdefault(kind, mode) != mode:
            raise WeightsError(
                f"LeRobot normalizes all {kind} the same way, but `{key}` is {mode} and others are {mapping[kind]}"
            )
    return mapping, statistics


def _keys(raw: Mapping[str, Any], features: Mapping[str, Mapping[str, Any]], *, images: bool) -> list[str]:
    """Return the features that a transform changes."""
    kept = [key for key, feature in features.items() if (feature["type"] == "VISUAL") == images]
    return kept if raw["keys"] is None else [key for key in raw["keys"] if key in kept]


def _mode(key: str, kind: str, config: Mapping[str, Any], statistics: Statistics) -> str:
    mode = config["normalization_mapping"].get(kind, "IDENTITY")
    if mode not in _MODES:
        raise WeightsError(f"`{key}` is normalized by {mode}, which has no counterpart")
    missing = [name for name in _NEEDS.get(mode, ()) if name not in statistics.get(key, {})]
    if missing:
        raise WeightsError(f"the checkpoint lacks the `{missing[0]}` of `{key}`, which {mode} needs")
    return str(mode)


def _of_image(mode: str, held: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return the options of `normalize_image`."""
    if mode == "IDENTITY":
        return {"type": "normalize_image", "stats": "zero_one"}
    low, high = (list(held[name]) for name in _NEEDS[mode])
    pairs = list(zip(low, high, strict=True))
    mean = low if mode == "MEAN_STD" else [(first + second) / 2.0 for first, second in pairs]
    std = high if mode == "MEAN_STD" else [(second - first) / 2.0 for first, second in pairs]
    known = zip((*mean, *std), (*_IMAGENET[0], *_IMAGENET[1]), strict=True)
    if all(abs(one - other) < 1e-6 for one, other in known):
        return {"type": "normalize_image", "stats": "imagenet"}
    return {"type": "normalize_image", "mean": mean, "std": [value + _EPS for value in std]}


def _widened_above(held: Mapping[str, list[float]], mode: str) -> dict[str, list[float]]:
    """Widen the range of constant dimensions upwards: LeRobot maps them to -1, ours would to 0."""
    if mode == "MEAN_STD":
        return dict(held)
    low, high = _NEEDS[mode]
    wider = [
        second if second > first else first + max(_EPS, _SPREAD * abs(first))
        for first, second in zip(held[low], held[high], strict=True)
    ]
    return {**held, high: wider}


def _widened(held: Mapping[str, list[float]], mode: str) -> dict[str, list[float]]:
    """Widen the range of constant dimensions on both sides: ours maps them to 0, LeRobot would to -1."""
    if mode == "MEAN_STD":
        return dict(held)
    low, high = _NEEDS[mode]
    pairs = list(zip(held[low], held[high], strict=True))
    spreads = [0.0 if second > first else max(_EPS, _SPREAD * abs(first)) for first, second in pairs]
    return {
        **held,
        low: [value - spread for value, spread in zip(held[low], spreads, strict=True)],
        high: [value + spread for value, spread in zip(held[high], spreads, strict=True)],
    }


def _constants(raw: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    if raw["mean"] is not None:
        return raw["mean"], raw["std"]
    return {
        "imagenet": _IMAGENET,
        "half": ([0.5] * 3, [0.5] * 3),
        "zero_one": ([0.0] * 3, [1.0] * 3),
    }[raw["stats"]]


__all__ = ["processor", "transforms"]
