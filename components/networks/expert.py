from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...schemas.errors import SpecError
from ...schemas.part import Count, Depth, NetworkConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Context, Facts, Feature, Network
from ..features import action_spec, chunk_size, features_of
from ..kernels.modulated_norm import per_token
from ..layers.basic import joined_mask, mlp, waves
from ..layers.blocks.expert import ExpertLayer, expert_norm
from ..layers.blocks.modulation import with_features
from ..layers.rotary import rotary_table

_ALIGNED = 8
"""Keys come in multiples of so many, without which a GPU multiplies by slower instructions."""


class Expert(Network):
    """Transformer that attends to a language model, layer by layer: the mixture of transformers of pi0.

    Model and expert are two streams with separate weights that meet in attention (Black et al., 2024). The
    model never sees the expert's tokens, so the expert needs only its keys and values, which are computed
    once:

        [features, actions] of layer l  attend to  [keys and values of the model's layer l, their own]

    Other features of the head, such as the state, become tokens before the actions: they see the model and
    each other, and the actions see everything. Rotary positions continue after the model's last.

    With `joint_every: 2` the layers in between are those of SmolVLA (Shukor et al., 2025): tokens attend only
    to the model, by keys and values that the expert projects again, with positions from 0.
    """

    accepts = (Kind.KEY_VALUES, Kind.TOKENS, Kind.POOLED)
    times_of_steps = True

    class Config(NetworkConfig):
        type: Literal["expert"]
        width: Count = 1024
        """Size of a token of the expert."""
        hidden: Count = 4096
        """Hidden size of the feed-forward layers."""
        heads: Count = 8
        """Number of attention heads, of the size of the model's; a multiple of its key and value heads."""
        depth: Depth | None = None
        """Number of layers; by default that of the model. A divisor of it attends to every n-th layer."""
        family: Literal["gemma", "llama"] = "gemma"
        """Family of language models that determines norms and activation; llama in SmolVLA."""
        time: Literal["concat_mlp", "adarms"] = "concat_mlp"
        """Conditioning on time: an MLP on each action and the time (pi0), or modulated norms (pi0.5)."""
        action_attention: Literal["bidirectional", "causal"] = "bidirectional"
        """Attention among actions; causal in SmolVLA."""
        joint_every: Count = 1
        """Period of the layers with joint attention; the others attend to the model alone. 2 in SmolVLA."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._horizon, action_dim = chunk_size(inputs)
        self._longest = 1.0 if facts["time"] == "unit" else 1000.0
        self._model, spec = _model(inputs)
        features = {key: held for key, held in features_of(inputs).items() if key != self._model}
        self._keys = {key: key.replace(".", "_") for key in features}  # no dots in module names
        layers, self._groups, self._size = _sizes(spec)
        self._base = spec.rope or 0.0
        width, depth, adaptive = config.width, config.depth or layers, config.time == "adarms"
        self._stride = layers // depth
        self.project = nn.ModuleDict(
            {self._keys[key]: nn.Linear(held.width, width) for key, held in features.items()}
        )
        self.action_in = nn.Linear(action_dim, width)
        self.time = mlp([width if adaptive else 2 * width, width, width], "silu")
        self.layers = nn.ModuleList(
            ExpertLayer(config, self._groups, self._size, joint=index % config.joint_every == 0)
            for index in range(depth)
        )
        self.norm = expert_norm(config)
        self.action_out = nn.Linear(width, action_dim)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `action` (B, H, A); raise SpecError if the expert does not fit the model."""
        key, spec = _model(inputs)
        layers, groups, _ = _sizes(spec)
        why = f"`{key}` is {spec}"
        if config.width % 2:
            raise SpecError(
                f"a width of {config.width} cannot hold sines and cosines", field="width", label="odd"
            )
        if config.heads % groups:
            raise SpecError(
                f"{config.heads} heads cannot share the {groups} key and value heads of the model; {why}",
                field="heads",
                source=key,
                label=f"not a multiple of {groups}",
                help=f"choose `heads` that is a multiple of {groups}",
            )
        if config.depth is not None and layers % config.depth:
            raise SpecError(
                f"an expert of {config.depth} layers cannot attend to {layers} layers of the model; {why}",
                field="depth",
                source=key,
                label=f"not a divisor of {layers}",
                help="leave `depth` out to have one layer for each of the model's",
            )
        return {"action": action_spec(inputs)}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="expert", width=64, hidden=128, heads=2, joint_every=2)

    def encode(self, features: Mapping[str, Feature]) -> Context:
        """Return all that depends on the features.

        Returns:
            `key_values` (B, L, 2, G, N, E) in the layout of the layers, the model's `end` (B,), `tokens`
                (B, M, D) of other features, and `mask` (B, N) and `tokens_mask` (B, M) unless all are valid;
                without gradients also the tables and the mask of `_arrange`.
        """
        dtype, model = self.action_in.weight.dtype, features[self._model]
        if model.end is None:
            raise ValueError(f"`{self._model}` does not report where its positions end")
        held = model.values.to(dtype)[:, :: self._stride]
        if self.config.joint_every > 1:
            layers: Any = self.layers
            held = torch.stack([layer.read(held[:, i]) for i, layer in enumerate(layers)], dim=1)
        context = {"key_values": held, "end": model.end}
        if model.mask is not None:
            context["mask"] = model.mask
        if self._keys:
            parts = []
            for key, name in self._keys.items():
                values = features[key].values.to(dtype)
                tokens = self.project[name](values if values.ndim == 3 else values[:, None])
                parts.append((tokens, features[key].mask))
            context["tokens"] = torch.cat([tokens for tokens, _ in parts], dim=1)
            if (mask := joined_mask(*parts)) is not None:
                context["tokens_mask"] = mask
        if torch.is_grad_enabled():  # training may repeat the context, each time with padding of its own
            return context
        if "mask" in context:
            context = self._aligned(context)
        return {**context, **self._arrange(context)}

    def _aligned(self, context: Context) -> Context:
        """Return the context with hidden keys, so that the number of all keys suits the units for products."""
        known = context["tokens"].shape[1] if "tokens" in context else 0
        more = -(context["mask"].shape[1] + known + self._horizon) % _ALIGNED
        held, mask = context["key_values"], context["mask"]
        return {**context, "key_values": F.pad(held, (0, 0, 0, more)), "mask": F.pad(mask, (0, more))}

    def _arrange(self, context: Context, is_pad: Tensor | None = None) -> Context:
        """Return what the sequence of tokens determines, for all layers and times.

        Returns:
            The rotary table `cosine` and `sine` (B, 1, S, E / 2) after the model's positions, and with
                `joint_every` the same from 0, `own_cosine` and `own_sine`; and `visible`, the mask
                (B or 1, 1, heads / G * S, N + S) of joint layers, unless all see all.
        """
        config, held, end = self.config, context["key_values"], context["end"]
        places = torch.arange(self._horizon, device=held.device).expand(held.shape[0], -1)
        valid, known = None if is_pad is None else ~is_pad, 0
        actions = held.new_empty(held.shape[0], self._horizon, 0)
        tokens = actions
        if "tokens" in context:
            before, mask = context["tokens"], context.get("tokens_mask")
            known = before.shape[1]
            valid = joined_mask((before, mask), (actions, valid))
            tokens = torch.cat([before[..., :0], actions], dim=1)
            shown = torch.ones_like(before[..., 0], dtype=torch.bool) if mask is None else mask
            places = torch.cat([shown.cumsum(1) - 1, shown.sum(1, keepdim=True) + places], dim=1)
        causal = config.action_attention == "causal"
        made: Context = {}
        visible = _visible(held[:, 0, 0, 0], context.get("mask"), tokens, valid, known, causal)
        if visible is not None:
            made["visible"] = visible.repeat(1, 1, config.heads // self._groups, 1)
        made["cosine"], made["sine"] = rotary_table(end[:, None] + places, self._size, self._base)
        if config.joint_every > 1:
            made["own_cosine"], made["own_sine"] = rotary_table(places, self._size, self._base)
        return made

    def forward(self, chunk: Tensor, time: Tensor, context: Context, is_pad: Tensor | None = None) -> Tensor:
        """Return the prediction (B, H, A), float32, for chunk (B, H, A) and time (B,) or (B, H)."""
        config, condition = self.config, None
        tokens = self.action_in(chunk.to(self.action_in.weight.dtype))
        if config.time == "concat_mlp":
            embedded = context["moment"] if "moment" in context else self._embed(time)
            tokens = self.time(torch.cat([tokens, per_token(embedded).expand_as(tokens)], dim=-1))
        elif "modulations" not in context:
            condition = F.silu(self.time(self._embed(time)))
        known = 0
        if "tokens" in context:
            known = context["tokens"].shape[1]
            tokens = torch.cat([context["tokens"], tokens], dim=1)  # (B, S, D)
        if is_pad is not None or "cosine" not in context:
            context = {**context, **self._arrange(context, is_pad)}
        continued = context["cosine"], context["sine"]
        restarted = (context["own_cosine"], context["own_sine"]) if config.joint_every > 1 else continued
        mask, seen = context.get("visible"), context.get("mask")
        seen = None if seen is None else seen[:, None, None]
        everywhere = None if condition is None else with_features(condition, known)
        count, branch, gate = len(self.layers), None, None
        known_modulations = context["modulations"].unbind(1) if "modulations" in context else [None] * count
        for layer, held, made in zip(
            self.layers, context["key_values"].unbind(1), known_modulations, strict=True
        ):
            turned, allowed = (continued, mask) if layer.joint else (restarted, seen)
            tokens, branch, gate = layer(tokens, branch, gate, held, turned, allowed, everywhere, made)
        _, normal, _ = self.norm(tokens, everywhere, branch, gate, context.get("last_modulation"))
        out: Tensor = self.action_out(normal[:, known:])
        return out.float()

    def at(self, time: Tensor) -> Context:
        """Return the embedded `moment` (B, D), or the `modulations` (B, L, 2, 3 * D) and `last_modulation`."""
        if self.config.time == "concat_mlp":
            return {"moment": self._embed(time)}
        condition, layers, norm = F.silu(self.time(self._embed(time))), self.layers, self.norm
        made = [layer.modulations(condition) for layer in cast(Any, layers)]
        return {
            "modulations": torch.stack(made, dim=1),
            "last_modulation": cast(Any, norm).modulation(condition),
        }

    def _embed(self, time: Tensor) -> Tensor:
        """Embed times (B,) to (B, D)."""
        return waves(time / self._longest, self.config.width).to(self.action_in.weight.dtype)


def _visible(
    model: Tensor, seen: Tensor | None, tokens: Tensor, valid: Tensor | None, known: int, causal: bool
) -> Tensor | None:
    """Return the mask (B or 1, 1, S, N + S) of tokens (B, S, D) over [model, tokens]; None if all see all.

    The model has N tokens (B, N, E), and the first `known` of S tokens are features. Every token sees itself,
    so that attention is never empty.
    """
    valid = joined_mask((model, seen), (tokens, valid))  # (B, N + S)
    if valid is None and not known and not causal:
        return None
    count, before = tokens.shape[1], (model.shape[1], 0)
    place = torch.arange(count, device=tokens.device)
    block = (place - known + 1).clamp_min(0) if causal else (place >= known).long()
    visible = F.pad(block[:, None] >= block, before, value=True)
    if valid is None:
        return visible[None, None]
    itself = F.pad(place[:, None] == place, before, value=False)
    return (visible & valid[:, None, None]) | itself


def _model(inputs: Specs) -> tuple[str, Spec]:
    """Return the keys and values among the inputs; raise SpecError unless they are of one language model."""
    features = features_of(inputs)
    found = {key: spec for key, spec in features.items() if spec.kind is Kind.KEY_VALUES}
    if len(found) != 1:
        read = ", ".join(f"`{key}` ({spec.kind})" for key, spec in features.items())
        raise SpecError(
            f"`expert` attends to the keys and values of one language model, but the head reads {read}",
            label="no key_values" if not found else "one model at a time",
            help="let the head read `key_values` of a `vlm` backbone, such as `reads: [vlm.key_values]`, "
            "or of a neck `prefix`, or choose a network that reads tokens, such as `network: {type: dit}`"
            if not found
            else f"leave one of them out of `reads`: {', '.join(found)}",
        )
    key, spec = next(iter(found.items()))
    if spec.rope is None:
        raise SpecError(
            f"`expert` continues rotary positions, but the keys of `{key}` have none",
            source=key,
            label="keys without rotary positions",
            help="choose a language model with rotary positions, such as Gemma, Llama or Qwen",
        )
    return key, spec


def _sizes(spec: Spec) -> tuple[int, int, int]:
    """Return the number of layers L and groups G, and the head size E."""
    _, layers, _, groups, _, size = spec.dims
    assert isinstance(layers, int)
    assert isinstance(groups, int)
    assert isinstance(size, int)
    return layers, groups, size
