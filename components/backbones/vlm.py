from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from ...schemas.part import BackboneConfig, Depth
from ...schemas.specs import Kind, Spec, Specs
from ..base import Backbone, Batch, Facts, Feature
from ..pretrained.models import copy_transformer, read_config, source_of
from ..vlms import FAMILIES, family_of
from ..vlms.attention import attend_by_kernels
from ..vlms.inputs import inputs_of, read_inputs
from ..vlms.run import Continuation, run_layers
from ..vlms.segments import Segment
from ..vlms.sequence import AttentionPattern, attention_blocks, attention_mask
from ..vlms.validate import validate_vlm


class Vlm(Backbone):
    """Vision-language model of transformers, over images and an instruction.

    The sequence is [soft prompts | frames of all cameras, step by step | prompt | state | queries], with N
    tokens before the queries. Padding of the prompt is masked and takes no position; neither do frames that
    `<camera>_is_pad` (B, T) marks. A model of L layers publishes

    - `tokens` (B, N, D), the hidden states that a language head would read, or those of `layer`;
    - `pooled` (B, D), the last valid token or the mean;
    - `layers` (B, L, N, D), the hidden states after every layer, the last after the final norm;
    - `key_values` (B, L, 2, G, N, E), keys after the rotary embedding and values, with the next position;
    - `decoder`, the same with a decoder that continues with the model's own weights;
    - `queries` (B, n, D), learned tokens that read the whole sequence in one pass, for heads that decode in
      parallel (OpenVLA-OFT; Kim et al., 2025).

    The state enters as in SmolVLA (Shukor et al., 2025): one token per step, which sees the prompt but stays
    hidden from it. Soft prompts are those of Lester et al. (2021).
    """

    kind = Kind.IMAGE
    own = ("state", "queries", "soft_prompts")
    joint = True

    class Config(BackboneConfig):
        type: Literal["vlm"]
        pretrained: str | None = Field(default=None, min_length=1)
        """Model on the hub, or directory, that provides architecture and weights, such as `google/paligemma-3b-pt-224`."""
        architecture: str | None = Field(default=None, min_length=1)
        """Model that provides the architecture, without weights. One of this and `pretrained` is required."""
        depth: Depth | None = None
        """Number of layers of the language model to keep, from the first; by default all. The others are not built."""
        layer: Annotated[int, Field(ge=1)] | None = None
        """Layer that provides `tokens`, `pooled` and `queries`; by default the last, after the final norm."""
        attention: AttentionPattern | None = None
        """Attention among the tokens of images and prompt; by default as in known policies of the family."""
        pooling: Literal["last", "mean"] = "last"
        """Pooling: the last valid token, or the mean of all valid tokens."""
        state: Literal["none", "token"] = "none"
        """Add the state, projected to one token per step, after the prompt."""
        queries: NonNegativeInt = 0
        """Number of learned tokens at the end of the sequence, published as `queries`."""
        query_attention: AttentionPattern = "bidirectional"
        """Attention among the queries; all of them see the tokens before them."""
        soft_prompts: NonNegativeInt = 0
        """Number of learned tokens at the beginning of the sequence."""
        decoder: bool = False
        """Publish `decoder`, and keep the language head that it needs."""
        embedding_scale: Literal["model", "sqrt_width"] = "model"
        """Scale of image and prompt embeddings: as trained, or times sqrt(D) as in SmolVLA."""
        rope: Annotated[float, Field(gt=1.0)] | None = None
        """Base of the rotary embedding; by default the model's. SmolVLA always uses 10000."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._family = family_of(facts["config"], config.depth)
        self._inputs = inputs_of(config, inputs)
        self._rotary = self._family.rotary(config.rope)
        self._scale = math.sqrt(self._family.width) if config.embedding_scale == "sqrt_width" else 1.0
        width, states = self._family.width, sum(spec.width for spec in self._inputs.states.values())
        self.model: Any = self._family.build()
        own_head = config.decoder and not self._family.tied
        self.lm_head = nn.Linear(width, self._family.vocabulary, bias=False) if own_head else None
        self.state = nn.Linear(states, width) if states else None
        self.soft_prompts = _learned(config.soft_prompts, width)
        self.queries = _learned(config.queries, width)

    @classmethod
    def facts(cls, config: Config) -> dict[str, Any]:
        """Return the model's config; raise WeightsError if it is unreadable or of an unknown family."""
        return {"config": read_config(source_of(config), tuple(FAMILIES), "choose a vision-language model")}

    @classmethod
    def reads(cls, config: BackboneConfig, available: Specs) -> dict[str, Spec]:
        """Return cameras, prompt and, with `state: token`, the state; raise SpecError if one is missing."""
        return read_inputs(config, available)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the specs of the outputs; raise SpecError if options or inputs do not fit the model."""
        found = inputs_of(config, inputs)
        family, count = validate_vlm(config, found, facts)
        source, width, rotary = source_of(config), family.width, family.rotary(config.rope)
        why = f"{source} has width {width}"
        published = {
            "tokens": Spec(Kind.TOKENS, ("B", count, width), why),
            "pooled": Spec(Kind.POOLED, ("B", width), why),
            "layers": Spec(Kind.LAYERS, ("B", family.depth, count, width), f"{why} and depth {family.depth}"),
        }
        if rotary is not None:
            heads = (family.key_value_heads, count, family.head_size)
            published["key_values"] = Spec(
                Kind.KEY_VALUES,
                ("B", family.depth, 2, *heads),
                f"{source} has depth {family.depth} and {heads[0]} x {heads[2]} keys",
                rope=rotary.base,
            )
            if config.decoder:
                published["decoder"] = replace(published["key_values"], vocab=family.vocabulary)
        if config.queries:
            published["queries"] = Spec(Kind.TOKENS, ("B", config.queries, width), why)
        return published

    @classmethod
    def example(cls) -> Config:
        return cls.Config(
            type="vlm",
            architecture="policysmith/tiny-paligemma",
            state="token",
            queries=2,
            soft_prompts=1,
            decoder=True,
        )

    def load_pretrained(self) -> None:
        """Copy the weights of the pretrained model; raise WeightsError if they do not fit."""
        if self.config.pretrained is not None:
            copy_transformer(self.config.pretrained, self._family.loadable(self.model, self.lm_head))

    def pack(self) -> None:
        """Attend as is fastest, for inference."""
        attend_by_kernels(self._family.layers(self.model))

    def forward(self, observations: Batch, outputs: Collection[str]) -> dict[str, Feature]:
        """Return the named outputs of images (B, T, 3, H, W), token ids (B, L) and state (B, T, S)."""
        family, config, every = self._family, self.config, set(outputs)
        context, state, queries = self._segments(observations)
        sequence = Segment.concatenate([*context, state, queries])
        count, device = sequence.count - queries.count, sequence.mask.device
        positions, passed = sequence.places.positions(sequence.mask)
        order = attention_blocks(
            [
                (sum(segment.count for segment in context), config.attention or family.attention),
                (state.count, "causal"),
                (queries.count, config.query_attention),
            ],
            device,
        )

        whole = config.layer is None or every & {"layers", "key_values", "decoder"}
        layers = family.layers(self.model)
        states = run_layers(
            layers if whole else layers[: config.layer],
            family.prepare(self.model, sequence.embeddings, positions),
            attention_mask(order, sequence.mask),
            None if self._rotary is None else self._rotary(positions, sequence.embeddings.dtype),
            deep=sequence.deep,
        )
        mask = sequence.mask[:, :count]
        normed = family.finish(self.model, states.layers[-1]) if whole else states.layers[-1]
        chosen = normed if config.layer is None else states.layers[config.layer - 1]

        features = {}
        if "tokens" in every:
            features["tokens"] = Feature(chosen[:, :count], mask)
        if "pooled" in every:
            features["pooled"] = Feature(self._pool(chosen[:, :count], mask))
        if "layers" in every:
            stacked = torch.stack([*states.layers[:-1], normed], dim=1)  # (B, L, N + n, D)
            features["layers"] = Feature(stacked[:, :, :count], mask)
        if every & {"key_values", "decoder"}:
            held = torch.stack(list(states.key_values), dim=1)[..., :count, :]  # (B, L, 2, G, N, E)
            end = passed[:, count - 1]
            features["key_values"] = Feature(held, mask, end)
            features["decoder"] = Feature(held, mask, end, self._decoder())
        if "queries" in every:
            features["queries"] = Feature(chosen[:, count:])
        return {name: features[name] for name in outputs}

    def _segments(self, observations: Batch) -> tuple[list[Segment], Segment, Segment]:
        """Return the segments [soft prompts, frames, prompt], the state, and the queries."""
        family, inputs, axes = self._family, self._inputs, self._family.axes
        ids, mask = observations[inputs.ids], observations[inputs.mask].bool()
        prompt = family.embedding(self.model)(ids) * self._scale
        frames = Segment.of_frames(family, self.model, inputs, observations, prompt.dtype)
        none = prompt[:, :0]
        soft, queries = (
            none if learned is None else learned.expand(ids.shape[0], -1, -1)
            for learned in (self.soft_prompts, self.queries)
        )
        state = none
        if self.state is not None:
            values = torch.cat([observations[key] for key in inputs.states], dim=-1)
            state = self.state(values.to(prompt.dtype))  # (B, T, D)
        context = [
            Segment.sequential(soft, axes),
            replace(frames, embeddings=frames.embeddings * self._scale),
            Segment.sequential(prompt, axes, mask),
        ]
        return context, Segment.sequential(state, axes), Segment.sequential(queries, axes)

    def _pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if self.config.pooling == "last":
            steps = torch.arange(mask.shape[1], device=mask.device)
            last = (mask * steps).amax(1)
            return tokens.gather(1, last[:, None, None].expand(-1, 1, tokens.shape[2])).squeeze(1)
        total = tokens.masked_fill(~mask[..., None], 0.0).sum(1)
        return total / mask.sum(1, keepdim=True).clamp_min(1).to(total.dtype)

    def _decoder(self) -> Continuation | None:
        if not self.config.decoder:
            return None
        assert self._rotary is not None
        head = self._tied_head if self.lm_head is None else self.lm_head
        return Continuation(self._family, self.model, head, self._rotary, self._scale)

    def _tied_head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self._family.embedding(self.model).weight)


def _learned(count: int, width: int) -> nn.Parameter | None:
    """Return learned tokens (n, D), at the scale of the embeddings of language models."""
    return nn.Parameter(torch.randn(count, width) * 0.02) if count else None
