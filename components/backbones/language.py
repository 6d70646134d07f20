"""A text encoder for the instruction."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    BertConfig,
    BertModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from ...schemas.errors import SpecError
from ...schemas.part import BackboneConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Backbone, Batch, Facts, Feature
from ..pretrained import copy_transformer, read_config

_COLLATOR = "set `collator: {type: language, tokenizer: <the same model>}` to turn `task` into token ids"


class Language(Backbone):
    """Encodes the instruction by a text encoder of transformers: BERT and its kin, T5, CLIP's text half.

    Publishes `tokens` (B, L, D), with a mask that leaves padding out, and `pooled` (B, D).
    """

    kind = Kind.TOKEN_IDS

    class Config(BackboneConfig):
        """A text encoder for the instruction."""

        type: Literal["language"]
        """Encode the instruction by a text encoder."""
        pretrained: str = Field(min_length=1)
        """Model on the Hugging Face hub, or directory, such as `sentence-transformers/all-MiniLM-L6-v2`."""
        pooling: Literal["mean", "first", "last"] = "mean"
        """What `pooled` is: the mean over all tokens, the first (class) token, or the last (end-of-text, for CLIP)."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._ids, _ = _source(config, inputs)
        self._mask = f"{self._ids.removesuffix('.input_ids')}.attention_mask"
        sizes = _sizes(facts)
        encoder: Any = MODEL_FOR_TEXT_ENCODING_MAPPING[type(sizes)]
        self.model: PreTrainedModel = encoder(sizes, **_options(encoder))

    @classmethod
    def facts(cls, config: Config) -> dict[str, Any]:
        """The encoder's config; raises WeightsError where it cannot be read or is no text encoder."""
        known = tuple(sorted(kind.model_type for kind in MODEL_FOR_TEXT_ENCODING_MAPPING))
        return {"config": read_config(config.pretrained, known, "choose a text encoder", part="text_config")}

    @classmethod
    def reads(cls, config: BackboneConfig, available: Specs) -> dict[str, Spec]:
        """The token ids; raises SpecError, which names the collator that makes them, where there are none."""
        if config.reads is None and not any(spec.kind is Kind.TOKEN_IDS for spec in available.values()):
            raise SpecError(
                "`language` reads token ids, and there are none", label="no token ids", help=_COLLATOR
            )
        return super().reads(config, available)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """`pooled` and `tokens`; raises SpecError where there are no token ids or they do not fit the encoder."""
        key, ids = _source(config, inputs)
        sizes: Any = _sizes(facts)
        if ids.vocab is not None and ids.vocab > sizes.vocab_size:
            raise SpecError(
                f"the tokenizer has {ids.vocab} token ids, but `{config.pretrained}` has {sizes.vocab_size} embeddings",
                field="pretrained",
                source=key,
                label=f"has {sizes.vocab_size} embeddings",
                help="use the tokenizer that the encoder was trained with",
            )
        longest, length = getattr(sizes, "max_position_embeddings", None), ids.dims[1]
        if isinstance(longest, int) and isinstance(length, int) and length > longest:
            raise SpecError(
                f"instructions are padded to {length} tokens, but `{config.pretrained}` reads at most {longest}",
                field="pretrained",
                source=key,
                label=f"reads at most {longest} tokens",
                help=f"set `max_length` of the collator to {longest} or less",
            )
        why = f"{config.pretrained} has width {sizes.hidden_size}"
        return {
            "pooled": Spec(Kind.POOLED, ("B", sizes.hidden_size), why),
            "tokens": Spec(Kind.TOKENS, ("B", length, sizes.hidden_size), why),
        }

    @classmethod
    def tiny(cls, directory: Path) -> Config:
        sizes = BertConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        )
        BertModel(sizes, add_pooling_layer=False).save_pretrained(directory / "text_encoder")
        return cls.Config(type="language", pretrained=str(directory / "text_encoder"))

    def load_pretrained(self) -> None:
        """Copy the weights of the encoder; raises WeightsError where they do not fit."""
        copy_transformer(self.config.pretrained, self.model, **_options(type(self.model)))

    def forward(self, observations: Batch, outputs: Collection[str]) -> dict[str, Feature]:
        """`pooled` (B, D) and `tokens` (B, L, D) of `task.input_ids` (B, L) and `task.attention_mask` (B, L)."""
        ids, mask = observations[self._ids], observations[self._mask].bool()
        visible = None if mask.is_meta else mask.long()  # transformers looks at the values of a mask
        hidden = self.model(input_ids=ids, attention_mask=visible).last_hidden_state  # (B, L, D)
        features = {}
        if "pooled" in outputs:
            features["pooled"] = Feature(self._pool(hidden, mask))
        if "tokens" in outputs:
            features["tokens"] = Feature(hidden, mask)
        return features

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.config.pooling == "first":
            return hidden[:, 0]
        if self.config.pooling == "last":
            last = (mask.sum(1) - 1).clamp_min(0)
            return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)
        total = hidden.masked_fill(~mask[..., None], 0.0).sum(1)
        return total / mask.sum(1, keepdim=True).clamp_min(1).to(total.dtype)


def _source(config: Language.Config, inputs: Specs) -> tuple[str, Spec]:
    """The token ids it reads."""
    found = Language.reads(config, inputs)
    if len(found) > 1:
        raise SpecError(
            f"`language` reads one text, and there are {len(found)}: {', '.join(found)}",
            field="reads",
            label="one text at a time",
            help=f"choose one, such as `reads: [{next(iter(found))}]`",
        )
    return next(iter(found.items()))


def _sizes(facts: Facts) -> PreTrainedConfig:
    held = dict(facts["config"])
    sizes: PreTrainedConfig = CONFIG_MAPPING[held.pop("model_type")].from_dict(held)
    return sizes


def _options(encoder: type[PreTrainedModel]) -> dict[str, Any]:
    """Leave out a pooler whose result is not read."""
    return (
        {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(encoder).parameters else {}
    )
