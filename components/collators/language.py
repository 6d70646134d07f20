from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ...schemas.errors import DatasetError, SpecError
from ...schemas.part import PartConfig
from ...schemas.specs import Dim, Kind, Spec, Specs
from ..base import Collator, Facts
from ..embodiments import EMBODIMENT
from ..language.prompts import (
    STATE,
    StateBins,
    StateRange,
    clean_instruction,
    state_bins_of_robots,
    template_fields,
)
from ..pretrained.models import read_tokenizer
from .default import stack

_KEY = "task"
_REMEMBERED = 10_000  # distinct prompts; a dataset has far fewer, a served policy may receive any number


class LanguageCollator(Collator):
    """Stack of samples, like `default`, with the tokenized instruction.

    Adds `task.input_ids` and `task.attention_mask` (B, L), int64, of the prompt: the instruction, or a
    template filled with it. `task.key` holds B byte strings, equal if and only if ids and mask are equal, by
    which a backbone recognizes a prompt without reading tensors. Prompts with the state hardly ever recur and
    have no key.
    """

    class Config(PartConfig):
        type: Literal["language"]
        tokenizer: str = Field(min_length=1)
        """Tokenizer on the Hugging Face hub, or directory: the one that the language backbone was trained with."""
        max_length: int = Field(default=32, ge=1)
        """Largest number of tokens of a prompt."""
        padding: Literal["max_length", "longest"] = "max_length"
        """Length of every batch: always `max_length`, or that of its longest prompt."""
        padding_side: Literal["right", "left"] = "right"
        """Side of the padding."""
        truncate: Literal["error", "end"] = "error"
        """Treatment of longer prompts: an error, or truncation at the end."""
        prompt: str = Field(default="{task}", min_length=1)
        """Template of the prompt: `{task}` is the instruction, `{state}` the last state in bins. pi0 reads `"{task}\\n"`, pi0.5 `"Task: {task}, State: {state};\\nAction: "`."""
        task_text: Literal["as_is", "cleaned"] = "as_is"
        """The instruction as it is, or in one line with spaces for underscores, as pi0 and pi0.5 read it."""
        state_bins: int = Field(default=256, ge=2)
        """Number of bins of each dimension of the state."""
        state_range: StateRange = "q99"
        """Range of a dimension that its bins divide: 1st to 99th percentile, or minimum to maximum."""
        append: list[str] = Field(default_factory=list)
        """Tokens to add after the prompt, such as `["<eos>"]` where the tokenizer adds none."""

    def __init__(self, config: Config, facts: Facts, assets: Path | None = None) -> None:
        super().__init__(config, facts, assets)
        self._tokenizer = read_tokenizer(config.tokenizer if assets is None else str(assets))
        self._ends = _ends(config, self._tokenizer)
        self._bins = _bins(config, facts)
        self._known: dict[str, tuple[Tensor, Tensor, bytes]] = {}

    @classmethod
    def facts(cls, config: Config) -> dict[str, Any]:
        """Return the number of token ids.

        Raises:
            WeightsError: The tokenizer is unreadable.
            SpecError: A token of `append` is unknown.
        """
        tokenizer = read_tokenizer(config.tokenizer)
        _ends(config, tokenizer)
        return {"vocab_size": len(tokenizer)}

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the specs of all inputs and `task.input_ids` (B, L); raise SpecError if one is missing."""
        spec = inputs.get(_KEY)
        if spec is None or spec.kind is not Kind.TEXT:
            raise SpecError(
                f"`language` tokenizes `{_KEY}`, and the data has none",
                field="type",
                source=_KEY,
                label=f"no `{_KEY}`",
                help="use `collator: {type: default}`, or a dataset with instructions",
            )
        if bins := _bins(config, facts):
            state, width = inputs.get(STATE), max(robot.width for robot in bins)
            if state is None or state.width != width:
                problem = (
                    "has none" if state is None else f"has {state}, and statistics of {width} dimensions"
                )
                raise SpecError(
                    f"the prompt writes `{STATE}`, and the data {problem}",
                    field="prompt",
                    source=STATE,
                    label=problem.removeprefix("has ") if state is not None else "no state",
                    help="leave `{state}` out of the prompt, or use a dataset with states and their statistics",
                )
        length: Dim = config.max_length if config.padding == "max_length" else "L"
        why = f"`{_KEY}` by {config.tokenizer}"
        return {**inputs, f"{_KEY}.input_ids": Spec(Kind.TOKEN_IDS, ("B", length), why, facts["vocab_size"])}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="language", tokenizer="policysmith/tiny", max_length=16)

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Stack samples (T, ...) to a batch (B, T, ...); raise DatasetError for a prompt that is too long."""
        batch = stack(samples)
        if _KEY not in batch:
            raise DatasetError(f"`language` tokenizes `{_KEY}`, and the samples have none")
        encoded = [self._encode(self._prompt(sample)) for sample in samples]
        ids, mask = torch.stack([row for row, _, _ in encoded]), torch.stack([row for _, row, _ in encoded])
        if self.config.padding == "longest":
            length = max(1, int(mask.sum(1).max()))
            kept = slice(length) if self.config.padding_side == "right" else slice(-length, None)
            ids, mask = ids[:, kept], mask[:, kept]
        tokens = {f"{_KEY}.input_ids": ids, f"{_KEY}.attention_mask": mask}
        keys = {} if self._bins else {f"{_KEY}.key": [key for _, _, key in encoded]}
        return {**batch, **tokens, **keys}

    def check(self, instructions: Sequence[str], samples: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """Raise SpecError for prompts of more than `max_length` tokens; with the state, check a sample."""
        if self.config.truncate != "error":
            return
        given = samples() if self._bins else ({_KEY: text} for text in instructions)
        prompts = dict.fromkeys(self._prompt(sample) for sample in given)
        lengths = {text: len(self._tokenizer(text).input_ids) + len(self._ends) for text in prompts}
        most = self.config.max_length
        longer = [text for text, length in lengths.items() if length > most]
        if longer:
            worst = max(longer, key=lambda text: lengths[text])
            shown = worst if len(worst) <= 120 else f"{worst[:117]}..."
            raise SpecError(
                f"{len(longer)} of {len(lengths)} prompts are longer than `max_length: {most}`; the longest has "
                f"{lengths[worst]} tokens: {shown!r}",
                field="max_length",
                label=f"the longest needs {lengths[worst]}",
                help=f"set `max_length: {lengths[worst]}` or `truncate: end`",
            )

    def save_assets(self, directory: Path) -> None:
        """Write the tokenizer's files."""
        self._tokenizer.save_pretrained(str(directory))

    def _prompt(self, sample: Mapping[str, Any]) -> str:
        task = clean_instruction(sample[_KEY]) if self.config.task_text == "cleaned" else sample[_KEY]
        if not self._bins:
            return str(self.config.prompt.format(task=task))
        wanted = [STATE] if len(self._bins) == 1 else [STATE, EMBODIMENT]
        for key in wanted:
            if key not in sample:
                raise DatasetError(f"the prompt asks for `{{state}}`, and the samples have no `{key}`")
        write = self._bins[int(sample[EMBODIMENT]) if EMBODIMENT in wanted else 0]
        return str(self.config.prompt.format(task=task, state=write(np.asarray(sample[STATE])[-1])))

    def _encode(self, text: str) -> tuple[Tensor, Tensor, bytes]:
        """Return ids and mask (max_length,) of a prompt, and its key."""
        if text not in self._known:
            config = self.config
            ids = [*self._tokenizer(text).input_ids, *self._ends]
            if len(ids) > config.max_length:
                if config.truncate == "error":
                    raise DatasetError(
                        f"the prompt {text!r} has {len(ids)} tokens, more than `max_length: {config.max_length}`; "
                        f"set `max_length: {len(ids)}` or `truncate: end`"
                    )
                most = max(config.max_length - len(self._ends), 1)
                ids = self._tokenizer(text, truncation=True, max_length=most).input_ids
                ids = [*ids, *self._ends][: config.max_length]
            spare = config.max_length - len(ids)
            padding = [self._tokenizer.pad_token_id or 0] * spare  # masked out; any id will do
            shown, hidden = [1] * len(ids), [0] * spare
            right = config.padding_side == "right"
            row = torch.tensor(ids + padding if right else padding + ids)
            mask = torch.tensor(shown + hidden if right else hidden + shown)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[text] = (row, mask, torch.tensor(ids, dtype=torch.int32).numpy().tobytes())
        return self._known[text]


def _bins(config: LanguageCollator.Config, facts: Facts) -> list[StateBins]:
    """Return writers of each robot's state, if the prompt contains it; raise SpecError without statistics."""
    if "state" not in template_fields(config.prompt):
        return []
    return state_bins_of_robots(config.state_bins, config.state_range, facts.get("statistics", {}))


def _ends(config: LanguageCollator.Config, tokenizer: Any) -> list[int]:
    """Return the ids of the tokens to append; raise SpecError for one that the tokenizer lacks."""
    known = tokenizer.get_vocab()
    for position, token in enumerate(config.append):
        if token not in known:
            raise SpecError(
                f"`{config.tokenizer}` has no token `{token}`",
                field=f"append.{position}",
                label="no such token",
                help=f"its special tokens are: {', '.join(tokenizer.all_special_tokens) or 'none'}",
            )
    return [known[token] for token in config.append]
