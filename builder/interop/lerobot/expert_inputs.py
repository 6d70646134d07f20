"""Inputs of LeRobot's pi0, pi0.5 and SmolVLA: resized, mapped to [-1, 1], padded, with a tokenized prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....schemas.errors import WeightsError

NEWLINE, STATE_PROMPT = "{task}\n", "Task: {task}, State: {state};\nAction: "
Processor = tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]
_STATE, _ACTION = "observation.state", "action"


@dataclass(frozen=True)
class Inputs:
    """Treatment of the inputs of one policy type."""

    prompt: str
    """Registered name of the preprocessor step that builds the prompt."""
    size: str
    """Name of the option for the size of images."""
    place: str
    """Placement of an image within that size."""
    padded: tuple[str, ...]
    """Vectors padded with zeros to a fixed width."""
    flipped: bool = False
    """True if the option is (width, height), and may be null for unchanged images."""

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the supported preprocessor steps."""
        return (self.prompt, "tokenizer_processor", "relative_actions_processor")

    def transforms(
        self, config: Mapping[str, Any], normalize: Sequence[Mapping[str, Any]], default: int
    ) -> list[dict[str, Any]]:
        """Return the transforms of a recipe, given the normalizing ones, or raise WeightsError."""
        found: list[dict[str, Any]] = []
        size = config.get(self.size, (default, default))
        if size is not None:
            pixels = list(reversed(size)) if self.flipped else list(size)
            found.append({"type": "resize_with_pad", "size": pixels, "place": self.place, "antialias": False})
        for raw in normalize:
            if raw["type"] != "normalize_image":
                found.append(dict(raw))
            elif raw.get("stats") == "zero_one":
                found.append({**raw, "stats": "half"})
            else:
                raise WeightsError(
                    "its images are normalized before the policy maps them to [-1, 1], which has no counterpart"
                )
        widths = {_STATE: config.get("max_state_dim", 32), _ACTION: config.get("max_action_dim", 32)}
        return [*found, {"type": "pad_dims", "sizes": {key: widths[key] for key in self.padded}}]

    def processor(self, content: Mapping[str, Any], prompt: str, task_text: str = "as_is") -> Processor:
        """Return config options, preprocessor steps, and the content with only the normalizing transforms.

        Raises:
            WeightsError: The policy processes its images or its prompt differently.
        """
        recipe = content["recipe"]
        options: dict[str, Any] = {self.size: None}
        left = []
        for raw in recipe["transforms"]:
            if raw["type"] == "resize_with_pad":
                size = raw["size"] if isinstance(raw["size"], list) else [raw["size"]] * 2
                options[self.size] = size[::-1] if self.flipped else size
                _same(raw, {"place": self.place, "antialias": False, "fill": 0.0, "keys": None})
            elif raw["type"] == "normalize_image":
                _same(raw, {"stats": "half", "mean": None})
                left.append({**raw, "stats": "zero_one"})
            elif raw["type"] != "pad_dims":
                left.append(raw)
        if not any(raw["type"] == "normalize_image" for raw in left):
            raise WeightsError("the policy reads images outside [-1, 1], the range of LeRobot's policy")
        if options[self.size] is None and not self.flipped:
            sizes = [spec["dims"][-2:] for spec in content["specs"].values() if spec["kind"] == "image"]
            options[self.size] = list(sizes[0])
        collator = recipe["collator"]
        _same(
            collator, {"type": "language", "prompt": prompt, "task_text": task_text, "padding_side": "right"}
        )
        options["tokenizer_max_length"] = collator["max_length"]
        tokenizer = {
            "max_length": collator["max_length"],
            "task_key": "task",
            "padding_side": "right",
            "padding": collator["padding"],
            "truncation": True,
            "tokenizer_name": collator["tokenizer"],
        }
        steps = [
            {"registry_name": self.prompt, "config": {}},
            {"registry_name": "tokenizer_processor", "config": tokenizer},
        ]
        return options, steps, {**content, "recipe": {**recipe, "transforms": left}}


def _same(raw: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for key, value in expected.items():
        if raw[key] != value:
            raise WeightsError(
                f"LeRobot's policy has no `{raw['type']}` with `{key}: {raw[key]!r}`, only with `{value!r}`"
            )


__all__ = ["NEWLINE", "STATE_PROMPT", "Inputs", "Processor"]
