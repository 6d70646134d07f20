from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...schemas.errors import SpecError
from ...schemas.part import Count, Depth, HeadConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import ActionHead, Facts, Feature
from ..features import action_spec, chunk_size, features_of, masked_mean
from ..layers.blocks.gpt import Gpt
from ..layers.blocks.transformer import check_heads
from ..layers.residual_vq import ChunkVae, FrozenCopy
from ..randomness.generator import categorical
from ..shares import WHOLE, Shares

Weight = Annotated[float, Field(ge=0.0)]


class Vqbet(ActionHead):
    """Vector-quantized behavior transformer (VQ-BeT, Lee et al., 2024): codes of chunks, and an offset.

    For the first `vae_steps` batches it learns the codes: an autoencoder with residual vector quantization,

        loss = |a - decoded| + commitment * sum over codebooks |x - code|^2

    After that the autoencoder is fixed, and a causal transformer learns to predict its codes. It reads
    [features, action query] of every observation step and further queries, one for each window of the chunk:
    window i is the actions i, i + 1, ... Codes are also drawn in training, with p the probability of the
    right one:

        loss = sum over codebooks w (1 - p)^2 (-log p) + offset_weight |a - (decoded(drawn) + offset(drawn))|

    VQ-BeT executes the first window; later windows add the actions beyond it.
    """

    accepts = (Kind.TOKENS, Kind.POOLED)
    trained: Tensor

    class Config(HeadConfig):
        type: Literal["vqbet"]
        vae_steps: Count = 20_000
        """Number of batches that train the codes before the transformer; they are part of `training.steps`."""
        windows: Count = 1
        """Number of chunks predicted at successive steps; together they are `data.horizon` long, each `horizon - windows + 1`."""
        codes: Count = 16
        """Number of codes of a codebook."""
        code_weights: list[Weight] = Field(default_factory=lambda: [5.0, 0.5], min_length=1)
        """Weight of the classification loss of each codebook; the list determines the number of codebooks."""
        code_width: Count = 256
        """Size of a code."""
        vae_hidden: Count = 128
        """Hidden size of the autoencoder."""
        commitment: Weight = 5.0
        """Weight of the distance between vectors and their codes."""
        offset_weight: Weight = 10_000.0
        """Weight of the absolute error of the actions."""
        temperature: float = Field(default=0.1, gt=0.0)
        """Divisor of the scores before sampling codes."""
        width: Count = 512
        """Size of a token of the transformer."""
        depth: Depth = 8
        """Number of layers of the transformer."""
        heads: Count = 8
        """Number of attention heads, which share `width`."""
        dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
        """Dropout rate in the transformer."""
        observation_steps: Count = 1
        """Number of steps that the features hold one after the other; `data.observation_steps` in VQ-BeT."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        horizon, self._action_dim = chunk_size(inputs)
        self._length = horizon - config.windows + 1
        self._features = features_of(inputs)
        self._names = {key: key.replace(".", "_") for key in self._features}  # no dots in module names
        steps, books = config.observation_steps, len(config.code_weights)
        size = self._length * self._action_dim
        self.vae = ChunkVae(size, config.vae_hidden, books, config.codes, config.code_width)
        self.settled = FrozenCopy(copy.deepcopy(self.vae))
        self.register_buffer("trained", torch.zeros((), dtype=torch.int64))
        self.project = nn.ModuleDict()
        for key, spec in self._features.items():
            width = spec.width if spec.kind is Kind.TOKENS else spec.width // steps
            self.project[self._names[key]] = nn.Linear(width, config.width)
        self.query = nn.Parameter(torch.randn(config.width))
        tokens = sum(_tokens_per_step(spec, steps) for spec in self._features.values())
        length = steps * (tokens + 1) + config.windows - 1
        self.transformer = Gpt(length, config.width, config.depth, config.heads, config.dropout)
        self.code_scores = nn.Linear(config.width, books * config.codes)
        self.offsets = nn.Linear(config.width, books * config.codes * size)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `action` (B, H, A); raise SpecError if heads, windows or features do not fit."""
        horizon, _ = chunk_size(inputs)
        check_heads(config.width, config.heads)
        if config.windows > horizon:
            raise SpecError(
                f"{config.windows} windows do not fit into a chunk of {horizon}",
                field="windows",
                source="action",
                label=f"the chunk has {horizon} actions",
                help=f"choose at most {horizon} windows, or raise `data.horizon`",
            )
        for key, spec in features_of(inputs).items():
            if not isinstance(spec.dims[1], int):
                raise SpecError(
                    f"`{key}` is {spec}: a varying number of tokens cannot have fixed positions in the sequence",
                    source=key,
                    label="the number of tokens varies",
                    help="read its `pooled`, or give it a fixed number of tokens by a neck",
                )
            if spec.dims[1] % config.observation_steps:
                raise SpecError(
                    f"`{key}` is {spec}, which does not divide into {config.observation_steps} steps",
                    field="observation_steps",
                    source=key,
                    label=f"does not divide {spec.dims[1]}",
                    help="set it to `data.observation_steps`, or leave it out",
                )
        return {"action": action_spec(inputs)}

    @classmethod
    def example(cls) -> Config:
        small: dict[str, Any] = {
            "codes": 4,
            "code_width": 4,
            "vae_hidden": 16,
            "width": 16,
            "depth": 1,
            "heads": 2,
        }
        return cls.Config(type="vqbet", vae_steps=1, windows=2, offset_weight=1.0, dropout=0.0, **small)

    def counts(self, actions: Tensor, is_pad: Tensor) -> dict[str, Tensor]:
        """Return the numbers of `values` that are not padding, and of `windows` that have any."""
        padded = self._windows(is_pad)
        return {"values": (~padded).sum(), "windows": (~padded).any(-1).sum()}

    def loss(
        self,
        features: Mapping[str, Feature],
        actions: Tensor,
        is_pad: Tensor,
        shares: Shares = WHOLE,
    ) -> dict[str, Tensor]:
        """Return the loss of the current phase and its terms."""
        chunks, padded = self._windows(actions.float().masked_fill(is_pad, 0.0)), self._windows(is_pad)
        first = self._code_loss(chunks, padded, shares)
        second = self._prediction_loss(features, chunks, padded, shares)
        total = torch.where(self.trained < self.config.vae_steps, first["loss"], second["loss"])
        if self.training:
            self.trained += (~padded).any()
        return {**{name: value.detach() for name, value in (first | second).items()}, "loss": total}

    @torch.no_grad()
    def sample(self, features: Mapping[str, Feature], generator: torch.Generator | None = None) -> Tensor:
        """Return an action chunk (B, H, A) for codes that the generator draws."""
        hidden = self._hidden(features)
        _, indices = self._draw(hidden, generator)
        windows = self._predict(hidden, indices).unflatten(-1, (self._length, -1))
        windows = windows.unflatten(0, (-1, self.config.windows))  # (B, W, c, A)
        return torch.cat([windows[:, 0], windows[:, 1:, -1]], dim=1)

    def _code_loss(self, chunks: Tensor, padded: Tensor, shares: Shares) -> dict[str, Tensor]:
        """Return the loss of the first phase; in training, update the codes and their final copies."""
        valid = ~padded.all(-1)
        if self.training:
            now = valid.any() & (self.trained < self.config.vae_steps)
            self.vae.quantizer.start(self.vae.encode(chunks), valid, now & (self.trained == 0))
            self.settled.follow(self.vae, self.trained <= self.config.vae_steps)
        vectors, indices, decoded, errors = self.vae(chunks)
        if self.training:
            self.vae.quantizer.update(vectors, indices, valid, now)
        error = masked_mean((decoded - chunks).abs(), padded, shares.get("values"))
        distance = masked_mean(errors.sum(-1), ~valid, shares.get("windows"))
        total = error + self.config.commitment * distance
        return {"loss": total, "reconstruction": error, "commitment": distance}

    def _prediction_loss(
        self, features: Mapping[str, Feature], chunks: Tensor, padded: Tensor, shares: Shares = WHOLE
    ) -> dict[str, Tensor]:
        """Return the loss of the second phase."""
        hidden = self._hidden(features)
        scores, drawn = self._draw(hidden)
        with torch.no_grad():
            right = self.settled.module.codes(chunks)
        chances = scores.log_softmax(-1).gather(-1, right[..., None])[..., 0]  # (N, L), of the right codes
        focal = (1.0 - chances.exp()) ** 2 * -chances
        weighted = sum(weight * focal[:, book] for book, weight in enumerate(self.config.code_weights))
        code = masked_mean(cast(Tensor, weighted), padded.all(-1), shares.get("windows"))
        offset = masked_mean((self._predict(hidden, drawn) - chunks).abs(), padded, shares.get("values"))
        return {"loss": code + self.config.offset_weight * offset, "code": code, "offset": offset}

    def _windows(self, values: Tensor) -> Tensor:
        """Gather values (B, H, A) by window, (B * W, c * A)."""
        return values.unfold(1, self._length, 1).transpose(2, 3).flatten(2).flatten(0, 1)

    def _hidden(self, features: Mapping[str, Feature]) -> Tensor:
        """Return hidden states (B * W, D) of the action queries."""
        steps, dtype = self.config.observation_steps, self.query.dtype
        parts, masks = [], []
        for key, spec in self._features.items():
            values = features[key].values.to(dtype)
            values = values if spec.kind is Kind.TOKENS else values.unflatten(-1, (steps, -1))
            tokens = self.project[self._names[key]](values).unflatten(1, (steps, -1))  # (B, T, n, D)
            mask = features[key].mask
            valid = values.new_ones(values.shape[:2], dtype=torch.bool) if mask is None else mask
            parts.append(tokens)
            masks.append(valid.unflatten(1, (steps, -1)))
        size, later = parts[0].shape[0], self.config.windows - 1
        query, shown = self.query.expand(size, steps, 1, -1), masks[0].new_ones(size, steps, 1)
        tokens = torch.cat([*parts, query], dim=2).flatten(1, 2)
        tokens = torch.cat([tokens, self.query.expand(size, later, -1)], dim=1)
        valid = torch.cat([*masks, shown], dim=2).flatten(1)
        valid = F.pad(valid, (0, later), value=True)
        out: Tensor = self.transformer(tokens, valid)[:, -1 - later :]
        return out.flatten(0, 1)

    def _draw(self, hidden: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return scores (N, L, C) of the codes, float32, and drawn indices (N, L)."""
        scores = self.code_scores(hidden).float().unflatten(-1, (-1, self.config.codes))
        return scores, categorical(scores.detach() / self.config.temperature, generator=generator)

    def _predict(self, hidden: Tensor, indices: Tensor) -> Tensor:
        """Return flat windows (N, c * A), float32: decoded codes plus their offsets."""
        offsets = (
            self.offsets(hidden).float().unflatten(-1, (len(self.config.code_weights), self.config.codes, -1))
        )
        chosen = indices[:, :, None, None].expand(-1, -1, 1, offsets.shape[-1])
        with torch.no_grad():
            decoded = self.settled.module.decode(indices)
        offset: Tensor = offsets.gather(2, chosen)[:, :, 0].sum(1)
        return decoded + offset


def _tokens_per_step(spec: Spec, steps: int) -> int:
    """Return the number of tokens of a feature per observation step."""
    count = spec.dims[1]
    assert isinstance(count, int)
    return count // steps if spec.kind is Kind.TOKENS else 1
