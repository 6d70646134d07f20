"""Stack samples and turn their instruction into token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ...schemas.errors import DatasetError, SpecError, WeightsError
from ...schemas.part import PartConfig
from ...schemas.specs import Dim, Kind, Spec, Specs
from ..base import Collator, Facts
from .default import stack

_KEY = "task"
_REMEMBERED = 10_000  # different instructions; a dataset has far fewer, a served policy may meet any number


class LanguageCollator(Collator):
    """Stacks like `default`, and adds `task.input_ids` and `task.attention_mask` (B, L) int64, padded on the right."""

    class Config(PartConfig):
        """Stack samples and turn their instruction into token ids."""

        type: Literal["language"]
        """Stack samples and tokenize `task`."""
        tokenizer: str = Field(min_length=1)
        """Tokenizer on the Hugging Face hub, or directory: the one that the language backbone was trained with."""
        max_length: int = Field(default=32, ge=1)
        """Most tokens of one instruction."""
        padding: Literal["max_length", "longest"] = "max_length"
        """Length of every batch: always `max_length`, or that of its longest instruction."""
        truncate: Literal["error", "end"] = "error"
        """What happens to longer instructions: an error, or their end is cut off."""

    def __init__(self, config: Config, facts: Facts, assets: Path | None = None) -> None:
        super().__init__(config, facts, assets)
        self._tokenizer = _load(config.tokenizer if assets is None else str(assets))
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    @classmethod
    def facts(cls, config: Config) -> dict[str, Any]:
        """Number of token ids; raises WeightsError where the tokenizer cannot be read."""
        return {"vocab_size": len(_load(config.tokenizer))}

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """All inputs and `task.input_ids` (B, L); raises SpecError where there is no `task`."""
        spec = inputs.get(_KEY)
        if spec is None or spec.kind is not Kind.TEXT:
            raise SpecError(
                f"`language` tokenizes `{_KEY}`, and the data has none",
                field="type",
                source=_KEY,
                label=f"no `{_KEY}`",
                help="use `collator: {type: default}`, or a dataset with instructions",
            )
        length: Dim = config.max_length if config.padding == "max_length" else "L"
        why = f"`{_KEY}` by {config.tokenizer}"
        return {**inputs, f"{_KEY}.input_ids": Spec(Kind.TOKEN_IDS, ("B", length), why, facts["vocab_size"])}

    @classmethod
    def tiny(cls, directory: Path) -> Config:
        words = {"[PAD]": 0, "[UNK]": 1, "open": 2, "close": 3, "the": 4, "drawer": 5, "door": 6}
        tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = Whitespace()
        wrapper: Any = PreTrainedTokenizerFast
        fast = wrapper(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
        fast.save_pretrained(str(directory / "tokenizer"))
        return cls.Config(type="language", tokenizer=str(directory / "tokenizer"), max_length=16)

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Samples (T, ...) -> batch (B, T, ...); raises DatasetError for an instruction that is too long."""
        batch = stack(samples)
        if _KEY not in batch:
            raise DatasetError(f"`language` tokenizes `{_KEY}`, and the samples have none")
        encoded = [self._encode(text) for text in batch[_KEY]]
        ids, mask = (torch.stack(column) for column in zip(*encoded, strict=True))
        if self.config.padding == "longest":
            length = max(1, int(mask.sum(1).max()))
            ids, mask = ids[:, :length], mask[:, :length]
        return {**batch, f"{_KEY}.input_ids": ids, f"{_KEY}.attention_mask": mask}

    def save_assets(self, directory: Path) -> None:
        """Write the tokenizer's files."""
        self._tokenizer.save_pretrained(str(directory))

    def _encode(self, text: str) -> tuple[Tensor, Tensor]:
        """Ids and mask (max_length,) of one instruction."""
        if text not in self._known:
            config = self.config
            ids = self._tokenizer(text).input_ids
            if len(ids) > config.max_length:
                if config.truncate == "error":
                    raise DatasetError(
                        f"the instruction {text!r} has {len(ids)} tokens, more than `max_length: {config.max_length}`; "
                        f"set `max_length: {len(ids)}` or `truncate: end`"
                    )
                ids = self._tokenizer(text, truncation=True, max_length=config.max_length).input_ids
            spare = config.max_length - len(ids)
            padding = self._tokenizer.pad_token_id or 0  # masked out; any id will do
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[text] = (
                torch.tensor(ids + [padding] * spare),
                torch.tensor([1] * len(ids) + [0] * spare),
            )
        return self._known[text]


def _load(source: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(
            f"cannot read the tokenizer `{source}`: {reason} "
            "(check the name, or download it where there is a network and give the directory)"
        ) from error
