from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.part import Count, Depth, HeadConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import ActionHead, Chunks, Facts, Feature
from ..features import action_spec, chunk_size, features_of, masked_mean, padded_steps
from ..language.fast_tokens import FastTokens
from ..layers.blocks.token_writer import TokenWriter
from ..layers.blocks.transformer import check_heads
from ..shares import WHOLE, Shares


class Fast(ActionHead):
    """Autoregressive FAST tokens of the chunk (Pertsch et al., 2025), trained by cross-entropy.

    The tokens are learned from the training chunks. Either the language model of a backbone writes them, with
    the last ids of its vocabulary (pi0-FAST), or a small transformer of the head, which reads the features.
    Padded steps hold the last valid action. Tokenization waits for the device in every step.
    """

    accepts = ()
    waits_for_device = True

    class Config(HeadConfig):
        type: Literal["fast"]
        writer: Literal["transformer", "language_model"] = "transformer"
        """Writer of the tokens: a transformer of the head, or the language model of a backbone (`<name>.decoder`)."""
        vocabulary: Count = 1024
        """Largest number of distinct tokens."""
        scale: Annotated[float, Field(gt=0.0)] = 10.0
        """Number of steps into which a frequency of size 1 is divided; a larger number is finer and makes more tokens."""
        max_tokens: Count = 256
        """Largest number of tokens of a chunk; chunks of the training data must fit."""
        skip: Annotated[int, Field(ge=0)] = 128
        """Number of unused ids at the end of the language model's vocabulary, as in pi0-FAST."""
        width: Count = 256
        """Size of a token of the transformer."""
        depth: Depth = 4
        """Number of layers of the transformer."""
        heads: Count = 4
        """Number of attention heads of the transformer, which share `width`."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._horizon, self._action_dim = chunk_size(inputs)
        self._facts = facts["tokens"]
        self._features = features_of(inputs)
        self._vocabulary: int = facts["tokens"]["size"] + 2  # with the start and end tokens of a chunk
        self._last = 0
        if config.writer == "transformer":
            sizes = (config.width, config.depth, config.heads)
            self.writer = TokenWriter(self._features, *sizes, self._vocabulary)
        else:
            (spec,) = self._features.values()
            assert spec.vocab is not None
            self._last = spec.vocab - 1 - config.skip

    @classmethod
    def kinds(cls, config: Config) -> tuple[Kind, ...]:
        """Return key_values for a language model, or the kinds that the transformer reads."""
        return (Kind.KEY_VALUES,) if config.writer == "language_model" else (Kind.TOKENS, Kind.POOLED)

    @classmethod
    def fit(cls, config: Config, inputs: Specs, facts: Facts, chunks: Callable[[], Chunks]) -> dict[str, Any]:
        """Return the tokens; raise SpecError if `vocabulary` or `max_tokens` is too small for them."""
        held = _fill_padding(*chunks())
        tokens = FastTokens.fit(held, config.vocabulary, config.scale)
        longest = max(map(len, FastTokens(tokens).encode(held)))
        if longest > config.max_tokens:
            raise SpecError(
                f"the longest chunk of the data takes {longest} tokens, more than {config.max_tokens}",
                field="max_tokens",
                source="action",
                label=f"the data needs {longest}",
                help=f"set `max_tokens: {longest}`, or lower `scale`",
            )
        return {"tokens": {**tokens, "size": FastTokens(tokens).size}}

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `action` (B, H, A); raise SpecError for a bad width or an unsuitable model."""
        features = features_of(inputs)
        if config.writer == "transformer":
            check_heads(config.width, config.heads, parts=2)
            return {"action": action_spec(inputs)}
        source, spec = next(iter(features.items()))
        needed = config.vocabulary + 2 + config.skip
        if len(features) > 1 or spec.vocab is None or spec.vocab < needed:
            problem = f"has {spec.vocab} tokens" if spec.vocab is not None else "writes no tokens"
            raise SpecError(
                f"a language model must write {needed} tokens, but `{source}` {problem}"
                if len(features) == 1
                else f"one language model writes the actions, but {len(features)} are read: {', '.join(features)}",
                field="writer",
                source=source,
                label=problem,
                help="read one `<vlm>.decoder`, or set `writer: transformer`",
            )
        return {"action": action_spec(inputs)}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="fast", width=32, depth=2, heads=2, max_tokens=24, scale=20.0, vocabulary=512)

    def counts(self, actions: Tensor, is_pad: Tensor) -> dict[str, Tensor]:
        """Return the number of `tokens` to predict."""
        return {"tokens": self._ids(actions, is_pad)[1].sum()}

    def loss(
        self,
        features: Mapping[str, Feature],
        actions: Tensor,
        is_pad: Tensor,
        shares: Shares = WHOLE,
    ) -> dict[str, Tensor]:
        """Return the cross-entropy of the next token, over the tokens of all chunks with a valid value."""
        ids, counts = self._ids(actions, is_pad)
        past = self._past(features)
        assert past.decoder is not None
        hidden, _ = past.decoder.extend(past, past.decoder.embed(self._writer_ids(ids[:, :-1])))
        scores = past.decoder.logits(hidden).float().flatten(0, 1)
        errors = F.cross_entropy(scores, self._writer_ids(ids[:, 1:]).flatten(), reduction="none")
        return {"loss": masked_mean(errors, ~counts.flatten(), shares.get("tokens"))}

    @torch.no_grad()
    def sample(self, features: Mapping[str, Feature], generator: torch.Generator | None = None) -> Tensor:
        """Return the chunk (B, H, A) of the greedily chosen tokens, independent of the generator."""
        past = self._past(features)
        writer = past.decoder
        assert writer is not None
        batch, device = len(past.values), past.values.device
        if device.type == "meta":  # tokens have no values there
            return torch.zeros(batch, self._horizon, self._action_dim, device=device)
        begin, end = self._vocabulary - 2, self._vocabulary - 1
        last = torch.full((batch, 1), begin, device=device)
        written: list[Tensor] = []
        ended = torch.zeros(batch, dtype=torch.bool, device=device)
        for _ in range(self.config.max_tokens):
            hidden, past = writer.extend(past, writer.embed(self._writer_ids(last)))
            scores = self._own_scores(writer.logits(hidden)[:, -1])
            scores[:, begin] = -torch.inf
            last = scores.argmax(-1, keepdim=True)
            ended |= last[:, 0] == end
            if bool(ended.all()):
                break
            written.append(last)
        rows = torch.cat(written, 1).tolist() if written else [[] for _ in range(batch)]
        ids = [row[: row.index(end)] if end in row else row for row in rows]
        return self.tokens.decode(ids).to(device)

    @property
    def tokens(self) -> FastTokens:
        """Tokenizer of chunks."""
        if self._tokens is None:
            self._tokens = FastTokens(self._facts)
        return self._tokens

    _tokens: FastTokens | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokens": None}

    def _past(self, features: Mapping[str, Feature]) -> Feature:
        """Return the writer's state after reading the features."""
        if self.config.writer == "transformer":
            return self.writer.read(features)
        return features[next(iter(self._features))]

    def _ids(self, actions: Tensor, is_pad: Tensor) -> tuple[Tensor, Tensor]:
        """Return start, tokens and end (B, M + 2) of each chunk, in own ids, and valid targets (B, M + 1)."""
        begin, end, most = self._vocabulary - 2, self._vocabulary - 1, self.config.max_tokens
        if actions.device.type == "meta":
            shape = (len(actions), 4)
            return torch.zeros(shape, dtype=torch.int64, device="meta"), torch.ones(
                (len(actions), 3), dtype=torch.bool, device="meta"
            )
        rows = [[begin, *ids[:most], end] for ids in self.tokens.encode(_fill_padding(actions, is_pad))]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [end] * (longest - len(row)) for row in rows], device=actions.device)
        lengths = torch.tensor([len(row) for row in rows], device=actions.device)
        counts = torch.arange(longest - 1, device=actions.device) < lengths[:, None] - 1
        return ids, counts & ~is_pad.flatten(1).all(1, keepdim=True)

    def _writer_ids(self, ids: Tensor) -> Tensor:
        """Return the writer's ids: the last of a language model, backwards."""
        return ids if self.config.writer == "transformer" else self._last - ids

    def _own_scores(self, scores: Tensor) -> Tensor:
        """Select the scores (B, V) of this head's tokens from the writer's."""
        if self.config.writer == "transformer":
            return scores.float()
        first = self._last - self._vocabulary + 1
        return scores[:, first : self._last + 1].flip(-1).float()


def _fill_padding(actions: Tensor, is_pad: Tensor) -> Tensor:
    """Fill padded steps of actions (B, H, A) with the last valid or the first action, padded dims with 0."""
    actions = actions.float().masked_fill(is_pad, 0.0)
    steps, counts = torch.arange(actions.shape[1], device=actions.device), ~padded_steps(is_pad)
    last = torch.where(counts, steps, -1).cummax(1).values  # (B, H)
    first = counts.int().argmax(1, keepdim=True)
    return actions.gather(1, torch.where(last < 0, first, last)[..., None].expand_as(actions))
