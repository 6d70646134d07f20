"""Networks that heads denoise with: the transformer and perceptron of the diffusion papers, and options of the DiT."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from policysmith.components.base import Feature
from policysmith.components.heads.diffusion import Diffusion
from policysmith.components.layers.basic import sinusoids
from policysmith.components.networks.dit import Dit
from policysmith.components.networks.mlp import MlpNetwork
from policysmith.components.networks.transformer import DiffusionTransformer
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Spec

POOLED = Spec(Kind.POOLED, ("B", 7))
TOKENS = Spec(Kind.TOKENS, ("B", 6, 8))
ACTION = Spec(Kind.ACTION, ("B", 4, 3))
TIMES = torch.tensor([3.0, 50.0])


def make(part: Any, inputs: dict[str, Spec], **options: Any) -> Any:
    config = part.Config(type=part.__module__.rpartition(".")[2], **options)
    inputs = {**inputs, "action": ACTION}
    part.specs(config, inputs, {"time": "steps"})
    made = part(config, inputs, {"time": "steps"})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def transformer(**options: Any) -> Any:
    sizes = {"width": 8, "depth": 2, "heads": 2, "encoder_depth": 0, **options}
    return make(DiffusionTransformer, {"vision.tokens": TOKENS, "state.pooled": POOLED}, **sizes)


def features() -> dict[str, Feature]:
    mask = torch.arange(6) < torch.tensor([[4], [6]])
    return {"vision.tokens": Feature(torch.randn(2, 6, 8), mask), "state.pooled": Feature(torch.randn(2, 7))}


def theirs(ours: Any, decoder: bool) -> nn.Module:
    """Torch's layer with the weights of ours."""
    options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
    kind: Any = nn.TransformerDecoderLayer if decoder else nn.TransformerEncoderLayer
    made = kind(8, 2, 32, **options)
    attentions = {"self": made.self_attn} | ({"context": made.multihead_attn} if decoder else {})
    with torch.no_grad():
        for name, attention in attentions.items():
            own = ours.branches[name]
            attention.in_proj_weight.copy_(torch.cat([own.query.weight, own.key_value.weight]))
            attention.in_proj_bias.copy_(torch.cat([own.query.bias, own.key_value.bias]))
            attention.out_proj.load_state_dict(own.out.state_dict())
    for index, name in enumerate((*attentions, "mlp")):
        getattr(made, f"norm{index + 1}").load_state_dict(ours.norms[name].state_dict())
    made.linear1.load_state_dict(ours.branches["mlp"][0].state_dict())
    made.linear2.load_state_dict(ours.branches["mlp"][-1].state_dict())
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize("encoder_depth", [0, 2])
@pytest.mark.parametrize("attention", ["causal", "full"])
def test_transformer_is_encoder_and_decoder_of_torch(encoder_depth: int, attention: str) -> None:
    part = transformer(encoder_depth=encoder_depth, attention=attention)
    given, chunk = features(), torch.randn(2, 4, 3)
    found = part(chunk, TIMES, part.encode(given))

    mask = torch.cat([torch.ones(2, 1), given["vision.tokens"].mask, torch.ones(2, 1)], dim=1).bool()
    tokens = part.joined.project["vision_tokens"](given["vision.tokens"].values)
    state = part.joined.project["state_pooled"](given["state.pooled"].values)[:, None]
    half = np.exp(-np.log(10_000) / 3 * np.arange(4))
    angles = torch.from_numpy(TIMES.numpy()[:, None] * half).float()
    time = torch.cat([angles.sin(), angles.cos()], dim=-1)[:, None]
    memory = torch.cat([time, torch.cat([tokens, state], dim=1) + part.positions], dim=1)
    for layer in part.encoder:
        memory = theirs(layer, decoder=False)(memory, src_key_padding_mask=~mask)
    if not encoder_depth:
        memory = part.perceptron(memory)
    hidden = part.action_in(chunk) + part.action_positions
    later = torch.ones(4, 4, dtype=torch.bool).triu(1) if attention == "causal" else None
    for layer in part.layers:
        hidden = theirs(layer, decoder=True)(hidden, memory, tgt_mask=later, memory_key_padding_mask=~mask)
    torch.testing.assert_close(found, part.action_out(part.norm(hidden)), atol=1e-5, rtol=1e-4)


def influence(part: Any, is_pad: Tensor | None = None) -> Tensor:
    """Return a mask (step, prediction) of the predictions of sample 0 that change with a step of the chunk."""
    context, chunk = part.encode(features()), torch.randn(2, 4, 3)
    whole = part(chunk, TIMES, context, is_pad)
    rows = []
    for step in range(4):
        changed = chunk.clone()
        changed[:, step] = torch.randn(3)
        rows.append((part(changed, TIMES, context, is_pad) - whole).abs().amax(-1)[0] > 1e-5)
    return torch.stack(rows)


def test_steps_see_the_past_and_hidden_ones_are_not_seen() -> None:
    torch.manual_seed(1)
    causal = torch.ones(4, 4, dtype=torch.bool).triu()
    assert torch.equal(influence(transformer()), causal)
    assert influence(transformer(attention="full")).all()
    is_pad = torch.tensor([[False, False, True, True], [False] * 4])
    hidden = torch.eye(4, dtype=torch.bool)
    shown = ~is_pad[0][:, None] | hidden
    assert torch.equal(influence(transformer(), is_pad), causal & shown)
    assert torch.equal(influence(transformer(attention="full"), is_pad), shown)


def test_a_varying_number_of_tokens_gets_no_positions() -> None:
    inputs = {"text.tokens": Spec(Kind.TOKENS, ("B", "L", 8))}
    part = make(DiffusionTransformer, inputs, width=8, depth=1, heads=2)
    assert part.positions is None
    for count in (2, 5):
        context = part.encode({"text.tokens": Feature(torch.randn(2, count, 8))})
        assert part(torch.randn(2, 4, 3), TIMES, context).shape == (2, 4, 3)


def test_perceptron_is_its_formula() -> None:
    part = make(MlpNetwork, {"state.pooled": POOLED}, width=5, depth=2, time_width=6, dropout=0.5).eval()
    state, chunk = torch.randn(2, 7), torch.randn(2, 4, 3)
    found = part(chunk, TIMES, part.encode({"state.pooled": Feature(state)}))
    time = part.time(sinusoids(TIMES, 6, 1.0))
    hidden = part.inward(torch.cat([time, state, chunk.reshape(2, 12)], dim=-1))
    for block in part.blocks:
        normal = (hidden - hidden.mean(-1, keepdim=True)) / (
            hidden.var(-1, keepdim=True, correction=0) + 1e-5
        ) ** 0.5
        normal = normal * block.norm.weight + block.norm.bias
        inner = normal @ block.layers[0].weight.T + block.layers[0].bias
        hidden = hidden + (inner * inner.sigmoid()) @ block.layers[2].weight.T + block.layers[2].bias
    expected = part.outward(hidden * hidden.sigmoid()).reshape(2, 4, 3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_hidden_steps_of_the_perceptron_are_zeros() -> None:
    part = make(MlpNetwork, {"state.pooled": POOLED}, width=5)
    context, is_pad = {"condition": torch.randn(2, 7)}, torch.arange(4) >= torch.tensor([[2], [4]])
    chunk = torch.randn(2, 4, 3)
    zeros = part(chunk.masked_fill(is_pad[..., None], 0.0), TIMES, context)
    assert torch.equal(part(chunk, TIMES, context, is_pad), zeros)


def dit(inputs: dict[str, Spec], **options: Any) -> Any:
    return make(Dit, inputs, width=8, depth=2, heads=2, **options)


def test_pooled_features_modulate_beside_the_time() -> None:
    inputs = {"state.pooled": POOLED, "vision.pooled": Spec(Kind.POOLED, ("B", 5))}
    part = dit(inputs, conditioning="adaln", time_width=6)
    given = {"state.pooled": Feature(torch.randn(2, 7)), "vision.pooled": Feature(torch.randn(2, 5))}
    context = part.encode(given)
    expected = torch.cat([value.values for value in given.values()], dim=-1)
    torch.testing.assert_close(context, {"condition": expected})
    assert not part.positions
    assert not part.project
    assert part.modulation is None
    chunk = torch.randn(2, 4, 3)
    seen: list[Tensor] = []
    part.blocks[0].modulation.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    part(chunk, TIMES, context)
    time = torch.cat([part.time(sinusoids(TIMES, 6, 1.0)), expected], dim=-1)
    torch.testing.assert_close(seen[0], time * time.sigmoid())


def test_only_pooled_features_modulate(world: Any) -> None:
    config = Diffusion.Config(type="diffusion", network={"type": "dit", "conditioning": "adaln"})
    with pytest.raises(SpecError, match=r"`vision\.tokens` is tokens") as caught:
        Diffusion.specs(config, world.feature_specs, {})
    assert (caught.value.field, caught.value.source) == ("network.conditioning", "vision.tokens")
    assert "attention_pool" in caught.value.help


@pytest.mark.parametrize("conditioning", ["cross_attention", "in_context", "adaln"])
def test_rotary_steps_know_their_distance_alone(conditioning: str) -> None:
    """Learned positions alone distinguish two equal chunks at different places of a longer one."""
    inputs = {"state.pooled": POOLED}
    context = {"state.pooled": Feature(torch.randn(2, 7))}
    same = torch.randn(2, 1, 3).expand(-1, 4, -1)
    rope = dit(inputs, conditioning=conditioning, positions="rope")
    assert not any("action_positions" in name for name, _ in rope.named_parameters())
    out = rope(same, TIMES, rope.encode(context))
    if conditioning != "in_context":  # there, features stand at some distance
        torch.testing.assert_close(out, out[:, :1].expand_as(out), atol=1e-5, rtol=1e-5)
    chunk = torch.randn(2, 4, 3)
    turned = rope(chunk.flip(1), TIMES, rope.encode(context)).flip(1)
    assert not torch.allclose(turned, rope(chunk, TIMES, rope.encode(context)), atol=1e-4)
    learned = dit(inputs, conditioning=conditioning)
    out = learned(same, TIMES, learned.encode(context))
    assert not torch.allclose(out, out[:, :1].expand_as(out), atol=1e-4)


def test_rotary_heads_are_even() -> None:
    with pytest.raises(SpecError, match="a width of 6 cannot be shared by 2 heads") as caught:
        make(Dit, {"state.pooled": POOLED}, width=6, heads=2, positions="rope")
    assert caught.value.field == "width"
    assert "multiple of 4" in caught.value.help
