"""An expert beside a language model: attends to the model's keys and values, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...schemas.errors import SpecError
from ...schemas.part import Count, Depth, NetworkConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Context, Facts, Feature, Network
from ..features import action_spec, chunk_size, features_of
from ..layers.basic import joined_mask, mlp, waves
from ..layers.expert import ExpertLayer, norm
from ..layers.rotary import rotary_table


class Expert(Network):
    """A transformer whose layers attend to those of a language model: the mixture of transformers of pi0.

    Model and expert are two streams that meet in attention, each with weights of its own (Black et al., 2024). The
    model never sees the expert's tokens, so its keys and values are all that the expert needs, and are computed once:

        [features, actions] of layer l  attend to  [keys and values of the model's layer l, their own]

    The other features that the head reads, such as the state, come as tokens before the actions: they see the model and
    each other, the actions see everything. Rotary positions go on where the model's end.

    With `joint_every: 2` the layers between are those of SmolVLA (Shukor et al., 2025): tokens attend only to the model,
    by keys and values that the expert projects once more, and count their positions from 0.
    """

    accepts = (Kind.KEY_VALUES, Kind.TOKENS, Kind.POOLED)

    class Config(NetworkConfig):
        """An expert beside a language model: attends to the model's keys and values, layer by layer."""

        type: Literal["expert"]
        """Denoise by a transformer that attends to the keys and values of a language model."""
        width: Count = 1024
        """Size of a token of the expert."""
        hidden: Count = 4096
        """Hidden size of the feed-forward layers."""
        heads: Count = 8
        """Attention heads, of the size that the model's have; a multiple of its key and value heads."""
        depth: Depth | None = None
        """Layers, by default as many as the model has. With fewer, a divisor of these, every n-th is attended to."""
        family: Literal["gemma", "llama"] = "gemma"
        """Norms and activation are those of this family of language models; llama in SmolVLA."""
        time: Literal["concat_mlp", "adarms"] = "concat_mlp"
        """How the time enters: joined to each action by an MLP (pi0), or by norms that it modulates (pi0.5)."""
        action_attention: Literal["bidirectional", "causal"] = "bidirectional"
        """Whether an action sees later ones; causal in SmolVLA."""
        joint_every: Count = 1
        """Of so many layers the first attends jointly, the others to the model alone; 2 in SmolVLA."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._horizon, action_dim = chunk_size(inputs)
        self._longest = 1.0 if facts["time"] == "unit" else 1000.0
        self._model, spec = _model(inputs)
        features = {key: held for key, held in features_of(inputs).items() if key != self._model}
        self._keys = {key: key.replace(".", "_") for key in features}  # module names hold no dots
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
        self.norm = norm(config)
        self.action_out = nn.Linear(width, action_dim)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """`action` (B, H, A); raises SpecError where the expert does not fit the model."""
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
                label=f"no multiple of {groups}",
                help=f"choose `heads` that is a multiple of {groups}",
            )
        if config.depth is not None and layers % config.depth:
            raise SpecError(
                f"an expert of {config.depth} layers cannot attend to {layers} layers of the model; {why}",
                field="depth",
                source=key,
                label=f"no divisor of {layers}",
                help="leave `depth` out to have one layer for each of the model's",
            )
        return {"action": action_spec(inputs)}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="expert", width=64, hidden=128, heads=2, joint_every=2)

    def encode(self, features: Mapping[str, Feature]) -> Context:
        """`key_values` (B, L, 2, G, N, E) as the layers attend to them, the model's `end` (B,), `tokens` (B, M, D) of
        other features, and `mask` (B, N) and `tokens_mask` (B, M) where not all are valid.
        """
        dtype, model = self.action_in.weight.dtype, features[self._model]
        if model.end is None:
            raise ValueError(f"`{self._model}` does not tell where its positions end")
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
        return context

    def forward(self, chunk: Tensor, time: Tensor, context: Context, is_pad: Tensor | None = None) -> Tensor:
        """Chunk (B, H, A) and time (B,) -> (B, H, A), float32."""
        dtype, config = self.action_in.weight.dtype, self.config
        tokens = self.action_in(chunk.to(dtype))
        told, condition = waves(time / self._longest, config.width).to(dtype), None
        if config.time == "adarms":
            condition = F.silu(self.time(told))
        else:
            tokens = self.time(torch.cat([tokens, told[:, None].expand_as(tokens)], dim=-1))
        valid, known = None if is_pad is None else ~is_pad, 0
        places = torch.arange(self._horizon, device=chunk.device).expand(len(chunk), -1)
        if "tokens" in context:
            before, mask = context["tokens"], context.get("tokens_mask")
            known = before.shape[1]
            valid = joined_mask((before, mask), (tokens, valid))
            tokens = torch.cat([before, tokens], dim=1)  # (B, S, D)
            shown = torch.ones_like(before[..., 0], dtype=torch.bool) if mask is None else mask
            places = torch.cat([shown.cumsum(1) - 1, shown.sum(1, keepdim=True) + places], dim=1)
        key_values, seen = context["key_values"], context.get("mask")
        share = config.heads // self._groups
        mask = _visible(
            key_values[:, 0, 0, 0], seen, tokens, valid, known, config.action_attention == "causal"
        )
        mask = None if mask is None else mask.repeat(1, 1, share, 1)
        seen = None if seen is None else seen[:, None, None]
        onward = rotary_table(context["end"][:, None] + places, self._size, self._base)
        anew = rotary_table(places, self._size, self._base) if config.joint_every > 1 else onward
        for layer, held in zip(self.layers, key_values.unbind(1), strict=True):
            turned, allowed = (onward, mask) if layer.joint else (anew, seen)
            tokens = layer(tokens, held, turned, allowed, condition)
        out: Tensor = self.action_out(self.norm(tokens[:, known:], condition)[1])
        return out.float()


def _visible(
    model: Tensor, seen: Tensor | None, tokens: Tensor, valid: Tensor | None, known: int, causal: bool
) -> Tensor | None:
    """What tokens (B, S, D), of which `known` are features, see of [model (B, N, E), tokens]: (B or 1, 1, S, N + S).

    None where all see all. Every token sees itself, so that there is something to attend to.
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
    """The keys and values among the inputs; raises SpecError unless they are those of one language model."""
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
            f"`expert` goes on with rotary positions, but the keys of `{key}` have none",
            source=key,
            label="keys without rotary positions",
            help="choose a language model with rotary positions, such as Gemma, Llama or Qwen",
        )
    return key, spec


def _sizes(spec: Spec) -> tuple[int, int, int]:
    """Layers L, groups G and head size E."""
    _, layers, _, groups, _, size = spec.dims
    assert isinstance(layers, int)
    assert isinstance(groups, int)
    assert isinstance(size, int)
    return layers, groups, size
