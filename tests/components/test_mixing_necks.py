"""Necks that mix tokens: against torch's own transformer layers in double precision, and by what can see what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from policysmith.components.base import Feature
from policysmith.components.layers.basic import Attention
from policysmith.components.layers.blocks.transformer import LayerOptions, TransformerLayer
from policysmith.components.necks.cross_attention import CrossAttention
from policysmith.components.necks.film import Film
from policysmith.components.necks.perceiver import Perceiver
from policysmith.components.necks.project import Project
from policysmith.components.necks.self_attention import SelfAttention
from policysmith.components.necks.soft_prompt import SoftPrompt
from policysmith.components.necks.transformer import Transformer
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Spec

INPUTS = {
    "a.tokens": Spec(Kind.TOKENS, ("B", 5, 8)),
    "b.tokens": Spec(Kind.TOKENS, ("B", 3, 8)),
    "c.pooled": Spec(Kind.POOLED, ("B", 6)),
    "text.tokens": Spec(Kind.TOKENS, ("B", "L", 8)),
}
EVERY = (
    (SelfAttention, "self_attention", {}),
    (CrossAttention, "cross_attention", {"condition": ["b"]}),
    (Perceiver, "perceiver", {}),
    (Transformer, "transformer", {}),
    (SoftPrompt, "soft_prompt", {}),
)


def make(part: Any, inputs: dict[str, Spec] | None = None, **options: Any) -> Any:
    inputs = INPUTS if inputs is None else inputs
    config = part.Config(type=part.__module__.rpartition(".")[2], **options)
    part.specs(config, inputs, {})
    made = part(config, inputs, {}).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def features(size: int = 2) -> dict[str, Feature]:
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])[:size]
    return {
        "a.tokens": Feature(torch.randn(size, 5, 8).double(), mask),
        "b.tokens": Feature(torch.randn(size, 3, 8).double()),
        "c.pooled": Feature(torch.randn(size, 6).double()),
    }


def copy_attention(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
    theirs.out_proj.load_state_dict(ours.out.state_dict())


def reference(ours: TransformerLayer, activation: str = "gelu") -> nn.Module:
    """Torch's layer with the same weights."""
    options = {"dropout": 0.0, "activation": activation, "batch_first": True, "norm_first": True}
    both = {"self", "context"} <= set(ours.branches)
    kind: Any = nn.TransformerDecoderLayer if both else nn.TransformerEncoderLayer
    theirs = kind(8, 2, 32, **options).double()
    copy_attention(ours.branches["self"], theirs.self_attn)
    names = (
        {"self": "norm1", "context": "norm2", "mlp": "norm3"} if both else {"self": "norm1", "mlp": "norm2"}
    )
    if both:
        copy_attention(ours.branches["context"], theirs.multihead_attn)
    for branch, norm in names.items():
        getattr(theirs, norm).load_state_dict(ours.norms[branch].state_dict())
    theirs.linear1.load_state_dict(ours.branches["mlp"][0].state_dict())
    theirs.linear2.load_state_dict(ours.branches["mlp"][-1].state_dict())
    return theirs  # type: ignore[no-any-return]


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_self_attention_is_a_transformer_encoder(activation: str) -> None:
    part = make(
        SelfAttention, reads=["a", "b"], heads=2, activation=activation, positions="learned", norm_in=True
    )
    given = features()
    tokens = torch.cat([given["a.tokens"].values, given["b.tokens"].values], dim=1)
    mask = torch.cat([given["a.tokens"].mask, torch.ones(2, 3, dtype=torch.bool)], dim=1)
    expected = part.norm_in(tokens + part.positions)
    for layer in part.layers:
        expected = reference(layer, activation)(expected, src_key_padding_mask=~mask)
    found = part(given, ("tokens",))["tokens"]
    assert torch.equal(found.mask, mask)
    torch.testing.assert_close(found.values, part.norm_out(expected))


def test_cross_attention_is_a_transformer_decoder() -> None:
    part = make(CrossAttention, reads=["b"], condition=["a"], heads=2, self_attention=True)
    given = features()
    expected, memory = given["b.tokens"].values, part.norm_in(given["a.tokens"].values)
    for layer in part.layers:
        expected = reference(layer)(expected, memory, memory_key_padding_mask=~given["a.tokens"].mask)
    found = part(given, ("tokens",))["tokens"]
    assert found.mask is None
    torch.testing.assert_close(found.values, part.norm_out(expected))


def test_cross_attention_without_self_attention_treats_every_token_alone() -> None:
    part, given = make(CrossAttention, reads=["b"], condition=["a"], heads=2), features()
    whole = part(given, ("tokens",))["tokens"].values
    changed = given["b.tokens"].values.clone()
    changed[:, 1] = torch.randn(8).double()
    found = part({**given, "b.tokens": Feature(changed)}, ("tokens",))["tokens"].values
    torch.testing.assert_close(found[:, [0, 2]], whole[:, [0, 2]])
    assert not torch.allclose(found[:, 1], whole[:, 1])


@pytest.mark.parametrize("self_attention", [True, False])
def test_latents_read_tokens_in_any_order(self_attention: bool) -> None:
    part = make(Perceiver, reads=["a"], latents=4, heads=2, self_attention=self_attention)
    given, order = features(), torch.tensor([4, 2, 0, 1, 3])
    values, mask = given["a.tokens"].values, given["a.tokens"].mask
    first = part(given, ("tokens", "pooled"))
    second = part({"a.tokens": Feature(values[:, order], mask[:, order])}, ("tokens",))
    torch.testing.assert_close(first["tokens"].values, second["tokens"].values)
    assert torch.equal(first["pooled"].values, first["tokens"].values.flatten(1))
    if self_attention:
        expected = part.latents.expand(2, -1, -1)
        for layer in part.layers:
            memory = part.norm_in(values)
            expected = reference(layer)(expected, memory, memory_key_padding_mask=~mask)
        torch.testing.assert_close(first["tokens"].values, part.norm_out(expected))


def sees(part: Transformer, given: dict[str, Feature]) -> Tensor:
    """Return a mask (M, B, N) of the outputs that change with each token of `b`."""
    whole = part(given, ("tokens",))["tokens"].values
    rows = []
    for place in range(3):
        values = given["b.tokens"].values.clone()
        values[:, place] = torch.randn(8).double()
        changed = part({**given, "b.tokens": Feature(values)}, ("tokens",))["tokens"].values
        rows.append((changed - whole).abs().amax(-1) > 1e-12)
    return torch.stack(rows)


def test_a_causal_transformer_sees_the_past() -> None:
    part = make(Transformer, reads=["b"], heads=2, attention="causal", readouts=0)
    expected = torch.tensor([[True, True, True], [False, True, True], [False, False, True]])
    assert torch.equal(sees(part, features()), expected[:, None].expand(3, 2, 3))
    full = make(Transformer, reads=["b"], heads=2, readouts=0)
    assert sees(full, features()).all()


def test_a_causal_transformer_is_gpt() -> None:
    part, given = make(Transformer, reads=["b"], heads=2, attention="causal", readouts=0), features()
    expected = given["b.tokens"].values + part.positions
    later = torch.ones(3, 3, dtype=torch.bool).triu(1)
    for layer in part.layers:
        expected = reference(layer)(expected, src_mask=later)
    found = part(given, ("tokens", "pooled"))
    torch.testing.assert_close(found["tokens"].values, part.norm(expected))
    assert torch.equal(found["pooled"].values, found["tokens"].values[:, -1])


@pytest.mark.parametrize("attention", ["full", "causal"])
def test_readouts_see_everything_and_are_seen_by_no_observation(attention: str) -> None:
    """Readouts of a full transformer equal those of one whose observations never see them."""
    part = make(Transformer, reads=["b", "a"], heads=2, attention=attention, readouts=2)
    given = features()
    whole = part(given, ("tokens", "pooled"))
    assert whole["tokens"].mask is None
    assert torch.equal(whole["pooled"].values, whole["tokens"].values.flatten(1))
    assert sees(part, given).all()
    observed: list[Tensor] = []
    part.layers[-1].register_forward_hook(lambda _module, _args, out: observed.append(out[:, :-2]))
    part(given, ("tokens",))
    with torch.no_grad():
        part.readouts[:, 0, 0] += 1.0
    changed = part(given, ("tokens",))["tokens"].values
    assert torch.equal(observed[0], observed[1])
    assert ((changed - whole["tokens"].values).abs().amax(-1) > 1e-12).all()  # readouts see each other


def test_the_last_valid_token_is_pooled() -> None:
    part, given = make(Transformer, reads=["a"], heads=2, readouts=0), features()
    found = part(given, ("tokens", "pooled"))
    tokens, pooled = found["tokens"].values, found["pooled"].values
    assert torch.equal(pooled, torch.stack([tokens[0, 2], tokens[1, 4]]))
    assert torch.equal(found["tokens"].mask, given["a.tokens"].mask)


def test_film_is_its_formula_and_starts_as_the_identity() -> None:
    given = features()
    config = Film.Config(type="film", reads=["a"], condition=["c"])
    fresh = Film(config, INPUTS, {}).double()(given, ("tokens",))["tokens"]
    assert torch.equal(fresh.values, given["a.tokens"].values)
    assert fresh.mask is given["a.tokens"].mask
    for name, key in (("a", "a.tokens"), ("c", "c.pooled")):
        part = make(Film, reads=[name], condition=["c"])
        output = key.partition(".")[2]
        values, layer = given[key].values, part.layers[0]
        changes = given["c.pooled"].values @ layer.weight.T + layer.bias
        width = values.shape[-1]
        shape = (2, *[1] * (values.ndim - 2), width)
        scale, shift = changes[:, :width].reshape(shape), changes[:, width:].reshape(shape)
        found = part(given, (output,))[output].values
        torch.testing.assert_close(found, values * (1 + scale) + shift)


def test_film_is_conditioned_by_pooled_features() -> None:
    config = Film.Config(type="film", reads=["a"], condition=["b"])
    with pytest.raises(SpecError, match="`b` is not among the features") as caught:
        Film.specs(config, INPUTS, {})
    assert caught.value.field == "condition.0"


def test_project_is_the_same_layer_on_every_token() -> None:
    given = features()
    for name, key in (("a", "a.tokens"), ("c", "c.pooled")):
        part = make(Project, reads=[name], width=3, hidden=[7], activation="relu", norm="layer")
        values, output = given[key].values, key.partition(".")[2]
        normal = nn.functional.layer_norm(values, values.shape[-1:], part.norm.weight, part.norm.bias)
        hidden = (normal @ part.layers[0].weight.T + part.layers[0].bias).clamp_min(0.0)
        found = part(given, (output,))[output]
        torch.testing.assert_close(found.values, hidden @ part.layers[2].weight.T + part.layers[2].bias)
        assert found.mask is given[key].mask


def test_projected_tokens_stay_places_of_a_map() -> None:
    inputs = {"a.tokens": Spec(Kind.TOKENS, ("B", 6, 8), grid=(1, 2, 3))}
    specs = Project.specs(Project.Config(type="project", reads=["a"], width=3), inputs, {})
    assert (specs["tokens"].dims, specs["tokens"].grid) == (("B", 6, 3), (1, 2, 3))


def test_prompts_stand_before_the_tokens() -> None:
    part, given = make(SoftPrompt, reads=["a", "b"], prompts=2), features()
    found = part(given, ("tokens",))["tokens"]
    assert torch.equal(found.values[:, :2], part.prompts.expand(2, -1, -1))
    assert torch.equal(found.values[:, 2:7], given["a.tokens"].values)
    assert torch.equal(found.mask[:, 2:7], given["a.tokens"].mask)
    assert found.mask[:, :2].all()
    assert found.mask[:, 7:].all()


def test_prompts_before_a_varying_number_of_tokens() -> None:
    config = SoftPrompt.Config(type="soft_prompt", reads=["text"], prompts=2)
    assert SoftPrompt.specs(config, INPUTS, {})["tokens"].dims == ("B", "2 + L", 8)


def test_each_robot_has_prompts_of_its_own() -> None:
    inputs = {**INPUTS, "embodiment": Spec(Kind.EMBODIMENT, ("B",), vocab=3)}
    part = make(SoftPrompt, inputs, reads=["b"], prompts=2, per_embodiment=True)
    given = {**features(), "embodiment": Feature(torch.tensor([2, 0]))}
    found = part(given, ("tokens",))["tokens"].values
    assert torch.equal(found[:, :2], part.prompts[[2, 0]])
    found.square().sum().backward()
    assert [bool(row.any()) for row in part.prompts.grad] == [True, False, True]
    with pytest.raises(SpecError, match="the data does not record it") as caught:
        make(SoftPrompt, reads=["b"], per_embodiment=True)
    assert caught.value.field == "per_embodiment"


@pytest.mark.parametrize(("part", "name", "options"), EVERY, ids=[name for _, name, _ in EVERY])
def test_widths_and_heads_that_do_not_fit(part: Any, name: str, options: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="one width") as caught:
        part.specs(part.Config(type=name, reads=["a", "c"], **options), INPUTS, {})
    assert (caught.value.field, caught.value.source) == ("width", "c.pooled")
    if issubclass(part.Config, LayerOptions):
        with pytest.raises(SpecError, match="cannot be shared by 3 heads") as caught:
            part.specs(part.Config(type=name, reads=["a"], heads=3, **options), INPUTS, {})
        assert caught.value.field == "heads"


@pytest.mark.parametrize("part", [SelfAttention, Transformer])
def test_positions_need_a_fixed_number_of_tokens(part: Any) -> None:
    with pytest.raises(SpecError, match="positions are learned for a fixed number of tokens") as caught:
        make(part, reads=["text"], positions="learned")
    assert caught.value.field == "positions"
    assert "positions: none" in caught.value.help
    make(part, reads=["text"], positions="none")


def test_dropout_acts_in_training_alone() -> None:
    tokens = torch.randn(2, 50, 8)
    for branch in ("self", "mlp"):
        layer = TransformerLayer(LayerOptions(heads=2, dropout=0.5), 8)
        for other in {"self", "mlp"} - {branch}:
            last: Any = layer.branches[other].out if other == "self" else layer.branches[other][-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        unchanged = (layer(tokens) == tokens).float().mean().item()
        assert unchanged == pytest.approx(0.5, abs=0.1)
        layer.eval()
        assert torch.equal(layer(tokens), layer(tokens))
        assert not (layer(tokens) == tokens).any()


def test_turned_attention_depends_on_distance() -> None:
    """Rotary queries and keys: shifting all positions changes nothing, shifting some does."""
    from policysmith.components.layers.rotary import rotary_table

    part, tokens = Attention(8, 2).double(), torch.randn(2, 5, 8).double()
    places = torch.arange(5.0)[None]
    near, far = (part(tokens, tokens, None, rotary_table(places + shift, 4)) for shift in (0.0, 100.0))
    torch.testing.assert_close(near, far, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(near, part(tokens, tokens, None, rotary_table(2 * places, 4)), atol=1e-4)
    assert not torch.allclose(near, part(tokens, tokens), atol=1e-4)
