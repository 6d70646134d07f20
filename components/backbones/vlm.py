"""A vision-language model."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...schemas.part import BackboneConfig, Depth
from ...schemas.specs import Kind, Spec, Specs
from ..base import Backbone, Batch, Facts, Feature
from ..pretrained.models import copy_transformer, read_config, source_of
from ..vlms import FAMILIES, family_of
from ..vlms.inputs import inputs_of, read_inputs
from ..vlms.run import Continuation, read
from ..vlms.segments import Stretch
from ..vlms.sequence import Attention, blocks, visible
from ..vlms.validate import check

Count = Annotated[int, Field(ge=0)]


class Vlm(Backbone):
    """Reads images and an instruction by a vision-language model of transformers.

    The sequence is [soft prompts | frames of all cameras, step by step | prompt | state | queries], N tokens without
    the queries. Padding of the prompt is masked and takes no position; so are frames that `<camera>_is_pad` (B, T)
    marks. Of its L layers come

    - `tokens` (B, N, D), the hidden states that a language head would read, or those of `layer`;
    - `pooled` (B, D), the last valid token or the mean;
    - `layers` (B, L, N, D), the hidden states after every layer, the last as a language head would read them;
    - `key_values` (B, L, 2, G, N, E), keys after the rotary embedding and values, with the position of what follows;
    - `decoder`, the same with a decoder that goes on with the model's own weights;
    - `queries` (B, n, D), learned tokens that read the whole sequence in one pass, for heads that decode in parallel
      (OpenVLA-OFT; Kim et al., 2025).

    The state enters as in SmolVLA (Shukor et al., 2025): one token a step, which sees the prompt and is not seen by it.
    Soft prompts are those of Lester et al. (2021).
    """

    kind = Kind.IMAGE
    own = ("state", "queries", "soft_prompts")
    joint = True

    class Config(BackboneConfig):
        """A vision-language model."""

        type: Literal["vlm"]
        """Encode images and instruction by a vision-language model."""
        pretrained: str | None = Field(default=None, min_length=1)
        """Model on the hub, or directory, to take architecture and weights from, such as `google/paligemma-3b-pt-224`."""
        architecture: str | None = Field(default=None, min_length=1)
        """Model to take the architecture from, without weights. One of this and `pretrained` is needed."""
        depth: Depth | None = None
        """Layers of the language model to keep, from the first; by default all. The others are not built."""
        layer: Annotated[int, Field(ge=1)] | None = None
        """Layer whose hidden states `tokens`, `pooled` and `queries` are; by default the last, after the final norm."""
        attention: Attention | None = None
        """How the tokens of images and prompt see each other; by default as in the policies known for the family."""
        pooling: Literal["last", "mean"] = "last"
        """What `pooled` is: the last valid token, or the mean of all valid tokens."""
        state: Literal["none", "token"] = "none"
        """Whether the state enters, projected to one token a step after the prompt."""
        queries: Count = 0
        """Number of learned tokens at the end of the sequence, published as `queries`."""
        query_attention: Attention = "bidirectional"
        """How these see each other; all of them see what comes before."""
        soft_prompts: Count = 0
        """Number of learned tokens at the beginning of the sequence."""
        decoder: bool = False
        """Publish `decoder`, and keep the language head that it needs."""
        embedding_scale: Literal["model", "sqrt_width"] = "model"
        """Scale of image and prompt embeddings: as the model was trained, or times sqrt(D) as SmolVLA does."""
        rope: Annotated[float, Field(gt=1.0)] | None = None
        """Base of the rotary embedding; by default the model's. SmolVLA uses 10000 whatever the model has."""

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
        """The model's config; raises WeightsError where it cannot be read or its family is not known."""
        return {"config": read_config(source_of(config), tuple(FAMILIES), "choose a vision-language model")}

    @classmethod
    def reads(cls, config: BackboneConfig, available: Specs) -> dict[str, Spec]:
        """Cameras, the prompt's token ids and, with `state: token`, the state; raises SpecError where one is missing."""
        return read_inputs(config, available)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """What is published; raises SpecError where options, images or prompt do not fit the model."""
        found = inputs_of(config, inputs)
        family, count = check(config, found, facts)
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
    def tiny(cls, directory: Path) -> Config:
        return cls.Config(
            type="vlm",
            architecture="policysmith/tiny-paligemma",
            state="token",
            queries=2,
            soft_prompts=1,
            decoder=True,
        )

    def load_pretrained(self) -> None:
        """Copy the weights of the pretrained model; raises WeightsError where they do not fit."""
        if self.config.pretrained is not None:
            copy_transformer(self.config.pretrained, self._family.carrier(self.model, self.lm_head))

    def forward(self, observations: Batch, outputs: Collection[str]) -> dict[str, Feature]:
        """The named outputs for normalised float images (B, T, 3, H, W), token ids (B, L) and the state (B, T, S)."""
        family, config, every = self._family, self.config, set(outputs)
        told, state, queries = self._stretches(observations)
        sequence = Stretch.joined([*told, state, queries])
        count, device = sequence.count - queries.count, sequence.mask.device
        positions, passed = sequence.places.positions(sequence.mask)
        order = blocks(
            [
                (sum(stretch.count for stretch in told), config.attention or family.attention),
                (state.count, "causal"),
                (queries.count, config.query_attention),
            ],
            device,
        )

        whole = config.layer is None or every & {"layers", "key_values", "decoder"}
        layers = family.layers(self.model)
        done = read(
            layers if whole else layers[: config.layer],
            family.enter(self.model, sequence.embeddings, positions),
            visible(order, sequence.mask),
            None if self._rotary is None else self._rotary(positions, sequence.embeddings.dtype),
            deep=sequence.deep,
        )
        mask = sequence.mask[:, :count]
        normed = family.leave(self.model, done.layers[-1]) if whole else done.layers[-1]
        chosen = normed if config.layer is None else done.layers[config.layer - 1]

        features = {}
        if "tokens" in every:
            features["tokens"] = Feature(chosen[:, :count], mask)
        if "pooled" in every:
            features["pooled"] = Feature(self._pool(chosen[:, :count], mask))
        if "layers" in every:
            stacked = torch.stack([*done.layers[:-1], normed], dim=1)  # (B, L, N + n, D)
            features["layers"] = Feature(stacked[:, :, :count], mask)
        if every & {"key_values", "decoder"}:
            held = torch.stack(list(done.key_values), dim=1)[..., :count, :]  # (B, L, 2, G, N, E)
            end = passed[:, count - 1]
            features["key_values"] = Feature(held, mask, end)
            features["decoder"] = Feature(held, mask, end, self._decoder())
        if "queries" in every:
            features["queries"] = Feature(chosen[:, count:])
        return {name: features[name] for name in outputs}

    def _stretches(self, observations: Batch) -> tuple[list[Stretch], Stretch, Stretch]:
        """What the model is told, which is [soft prompts, frames, prompt]; the state, and the queries."""
        family, inputs, axes = self._family, self._inputs, self._family.axes
        ids, mask = observations[inputs.ids], observations[inputs.mask].bool()
        prompt = family.embedding(self.model)(ids) * self._scale
        frames = Stretch.of_frames(family, self.model, inputs, observations, prompt.dtype)
        none = prompt[:, :0]
        soft, queries = (
            none if learned is None else learned.expand(len(ids), -1, -1)
            for learned in (self.soft_prompts, self.queries)
        )
        state = none
        if self.state is not None:
            values = torch.cat([observations[key] for key in inputs.states], dim=-1)
            state = self.state(values.to(prompt.dtype))  # (B, T, D)
        told = [
            Stretch.in_line(soft, axes),
            replace(frames, embeddings=frames.embeddings * self._scale),
            Stretch.in_line(prompt, axes, mask),
        ]
        return told, Stretch.in_line(state, axes), Stretch.in_line(queries, axes)

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
    """Learned tokens (n, D), as small as the embeddings of language models are at the start."""
    return nn.Parameter(torch.randn(count, width) * 0.02) if count else None
