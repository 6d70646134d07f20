from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
)

from ...schemas.errors import SpecError
from ...schemas.part import BackboneConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Backbone, Batch, Facts, Feature
from ..language.prompt_cache import PromptCache, is_constant
from ..pretrained.models import copy_transformer, read_config, source_of

_COLLATOR = "set `collator: {type: language, tokenizer: <the same model>}` to turn `task` into token ids"


class Language(Backbone):
    """Text encoder of transformers for the instruction: BERT and its kin, T5, or the text half of CLIP.

    Publishes `tokens` (B, L, D), with a mask that excludes padding, and `pooled` (B, P). A frozen encoder
    caches the features of each prompt if the collator provides `task.key`.
    """

    kind = Kind.TOKEN_IDS

    class Config(BackboneConfig):
        type: Literal["language"]
        pretrained: str | None = Field(default=None, min_length=1)
        """Model on the hub, or directory, that provides architecture and weights, such as `google-t5/t5-base`."""
        architecture: str | None = Field(default=None, min_length=1)
        """Model that provides the architecture, without weights. One of this and `pretrained` is required."""
        pooling: Literal["mean", "first", "last", "projected"] | None = None
        """Pooling: the mean over all tokens, the first (class) token, the last (end-of-text) token, or that token projected as CLIP compares it with images. By default `projected` for CLIP, else `mean`."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._ids, _ = _source(config, inputs)
        self._mask = f"{self._ids.removesuffix('.input_ids')}.attention_mask"
        self._key = f"{self._ids.removesuffix('.input_ids')}.key"
        sizes = _sizes(facts)
        self._pooling = _pooling(config, sizes)
        encoder: Any = MODEL_FOR_TEXT_ENCODING_MAPPING[type(sizes)]
        if self._pooling == "projected":
            encoder = CLIPTextModelWithProjection
        self.model: PreTrainedModel = encoder(sizes, **_options(encoder))
        self._remembered = PromptCache()

    @classmethod
    def facts(cls, config: Config) -> dict[str, Any]:
        """Return the encoder's config; raise WeightsError if it is unreadable or not a text encoder."""
        known = tuple(sorted(kind.model_type for kind in MODEL_FOR_TEXT_ENCODING_MAPPING))
        return {"config": read_config(source_of(config), known, "choose a text encoder", part="text_config")}

    @classmethod
    def reads(cls, config: BackboneConfig, available: Specs) -> dict[str, Spec]:
        """Return the token ids; raise SpecError, which names the collator to use, if there are none."""
        if config.reads is None and not any(spec.kind is Kind.TOKEN_IDS for spec in available.values()):
            raise SpecError(
                "`language` reads token ids, and there are none", label="no token ids", help=_COLLATOR
            )
        return super().reads(config, available)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the specs of the outputs; raise SpecError if token ids are missing or unsuitable."""
        key, ids = _source(config, inputs)
        sizes: Any = _sizes(facts)
        source, field = source_of(config), "pretrained" if config.pretrained is not None else "architecture"
        if ids.vocab is not None and ids.vocab > sizes.vocab_size:
            raise SpecError(
                f"the tokenizer has {ids.vocab} token ids, but `{source}` has {sizes.vocab_size} embeddings",
                field=field,
                source=key,
                label=f"has {sizes.vocab_size} embeddings",
                help="use the tokenizer that the encoder was trained with",
            )
        longest, length = getattr(sizes, "max_position_embeddings", None), ids.dims[1]
        if isinstance(longest, int) and isinstance(length, int) and length > longest:
            raise SpecError(
                f"prompts are padded to {length} tokens, but `{source}` reads at most {longest}",
                field=field,
                source=key,
                label=f"reads at most {longest} tokens",
                help=f"set `max_length` of the collator to {longest} or less",
            )
        projected = _pooling(config, sizes) == "projected"
        why = f"{source} has width {sizes.hidden_size}"
        pooled = sizes.projection_dim if projected else sizes.hidden_size
        return {
            "pooled": Spec(
                Kind.POOLED, ("B", pooled), f"{source} projects to {pooled}" if projected else why
            ),
            "tokens": Spec(Kind.TOKENS, ("B", length, sizes.hidden_size), why),
        }

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="language", architecture="policysmith/tiny-bert")

    def load_pretrained(self) -> None:
        """Copy the weights of the encoder; raise WeightsError if they do not fit."""
        if self.config.pretrained is not None:
            copy_transformer(self.config.pretrained, self.model, **_options(type(self.model)))

    def forward(self, observations: Batch, outputs: Collection[str]) -> dict[str, Feature]:
        """Return `pooled` (B, P) and `tokens` (B, L, D) of the prompt's ids and attention mask (B, L)."""
        ids, mask = observations[self._ids], observations[self._mask].bool()
        wanted, keys = (
            tuple(name for name in ("pooled", "tokens") if name in outputs),
            observations.get(self._key),
        )
        captured = (
            ids.is_cuda and torch.cuda.is_current_stream_capturing()
        )  # a graph would keep these very prompts
        if keys is None or ids.is_meta or captured or not is_constant(self):
            encoded = self._encode(ids, mask, wanted)
        else:
            device = ids.device.type
            precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
            encoded = self._remembered.recall(
                self.model,
                [(key, ids.shape[1], wanted, precision) for key in keys],
                lambda row: self._encode(ids[row : row + 1], mask[row : row + 1], wanted),
            )
        masks = {"tokens": mask}
        return {name: Feature(values, masks.get(name)) for name, values in zip(wanted, encoded, strict=True)}

    def _encode(self, ids: Tensor, mask: Tensor, outputs: Sequence[str]) -> tuple[Tensor, ...]:
        """Return the named outputs for ids and mask (B, L)."""
        visible = None if mask.is_meta else mask.long()  # transformers looks at the values of a mask
        hidden = self.model(input_ids=ids, attention_mask=visible).last_hidden_state  # (B, L, D)
        return tuple(hidden if name == "tokens" else self._pool(hidden, mask) for name in outputs)

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self._pooling == "first":
            return hidden[:, 0]
        if self._pooling == "mean":
            total = hidden.masked_fill(~mask[..., None], 0.0).sum(1)
            return total / mask.sum(1, keepdim=True).clamp_min(1).to(total.dtype)
        steps = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * steps).amax(1)
        pooled = hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)
        if self._pooling == "projected":
            model: Any = self.model
            projected: Tensor = model.text_projection(pooled)
            return projected
        return pooled


def _source(config: Language.Config, inputs: Specs) -> tuple[str, Spec]:
    """Return the token ids to read."""
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


def _pooling(config: Language.Config, sizes: PreTrainedConfig) -> str:
    """Return the pooling; raise SpecError for a projection that the encoder lacks."""
    projects = isinstance(sizes, CLIPTextConfig)
    if config.pooling == "projected" and not projects:
        raise SpecError(
            f"`{source_of(config)}` is a `{sizes.model_type}` model, which projects nothing; CLIP does",
            field="pooling",
            label="no projection",
            help="use `mean`, `first` or `last`",
        )
    return config.pooling or ("projected" if projects else "mean")


def _options(encoder: type[PreTrainedModel]) -> dict[str, Any]:
    """Return options that omit an unused pooler."""
    return (
        {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(encoder).parameters else {}
    )
