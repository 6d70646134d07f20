"""Necks that pool and join: spatial softmax, concat, attention pool and flatten, against brute force in double precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policysmith.components.base import Feature
from policysmith.components.necks.attention_pool import AttentionPool
from policysmith.components.necks.concat import Concat
from policysmith.components.necks.flatten import Flatten
from policysmith.components.necks.spatial_softmax import SpatialSoftmax
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Spec

TOKENS = Spec(Kind.TOKENS, ("B", 6, 10), grid=(1, 2, 3))


def keypoints(grid: tuple[int, int, int], channels: int, **options: Any) -> SpatialSoftmax:
    frames, height, breadth = grid
    inputs = {"vision.tokens": Spec(Kind.TOKENS, ("B", frames * height * breadth, channels), grid=grid)}
    config = SpatialSoftmax.Config(type="spatial_softmax", reads=["vision"], **options)
    specs = SpatialSoftmax.specs(config, inputs, {})
    part = SpatialSoftmax(config, inputs, {})
    found = part(
        {"vision.tokens": Feature(torch.zeros(2, frames * height * breadth, channels))}, tuple(specs)
    )
    assert {key: tuple(feature.values.shape) for key, feature in found.items()} == {
        key: (2, *spec.dims[1:]) for key, spec in specs.items()
    }
    return part


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=25)
def test_keypoints_are_expected_places(frames: int, height: int, width: int, seed: int, masked: bool) -> None:
    random = np.random.default_rng(seed)
    maps = random.normal(size=(2, frames, height, width, 3)) * 3
    valid = random.random((2, frames, height, width)) < (0.7 if masked else 2.0)
    part = keypoints((frames, height, width), 3, keypoints=None)
    mask = torch.from_numpy(valid.reshape(2, -1)) if masked else None
    feature = Feature(torch.from_numpy(maps.reshape(2, -1, 3)).float(), mask)
    found = part({"vision.tokens": feature}, ("pooled", "tokens"))

    expected = np.zeros((2, frames, 3, 2))
    xs = [-1 + 2 * j / (width - 1) if width > 1 else -1 for j in range(width)]
    ys = [-1 + 2 * i / (height - 1) if height > 1 else -1 for i in range(height)]
    for b, f, k in np.ndindex(2, frames, 3):
        weights = np.exp(maps[b, f, :, :, k]) * valid[b, f]
        if weights.sum():
            weights /= weights.sum()
            expected[b, f, k] = (weights * np.array(xs)).sum(), (weights.T * np.array(ys)).sum()
    np.testing.assert_allclose(found["pooled"].values.numpy(), expected.reshape(2, -1), atol=1e-5)
    np.testing.assert_allclose(found["tokens"].values.numpy(), expected.reshape(2, frames, -1), atol=1e-5)
    if masked:
        assert found["tokens"].mask is not None
        np.testing.assert_array_equal(found["tokens"].mask.numpy(), valid.any((2, 3)))
    else:
        assert found["tokens"].mask is None


def test_one_bright_place_is_the_keypoint() -> None:
    values = torch.zeros(1, 12, 2)
    values[0, 3, 0] = values[0, 8, 1] = 1e4  # of 3 rows of 4: row 0, column 3; row 2, column 0
    found = keypoints((1, 3, 4), 2, keypoints=None)({"vision.tokens": Feature(values)}, ("pooled",))
    torch.testing.assert_close(found["pooled"].values, torch.tensor([[1.0, -1.0, -1.0, 1.0]]))


def test_keypoints_of_mixed_channels_with_temperature_and_layer() -> None:
    part = keypoints((1, 2, 3), 10, keypoints=4, temperature="learned", width=7).double()
    with torch.no_grad():
        part.log_temperature.fill_(math.log(0.5))  # type: ignore[union-attr]
    values = torch.randn(2, 6, 10).double()
    mixed = values @ part.maps.weight.T + part.maps.bias
    plain = keypoints((1, 2, 3), 4, keypoints=None)
    points = plain({"vision.tokens": Feature(mixed / 0.5)}, ("pooled",))["pooled"].values
    layer = part.project[0]
    expected = (points @ layer.weight.T + layer.bias).clamp_min(0.0)
    found = part({"vision.tokens": Feature(values)}, ("pooled",))["pooled"].values
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert (found == 0.0).any()


def test_keypoints_need_a_map() -> None:
    config = SpatialSoftmax.Config(type="spatial_softmax", reads=["words"])
    with pytest.raises(SpecError, match=r"`words\.tokens`.*not places of feature maps") as caught:
        SpatialSoftmax.specs(config, {"words.tokens": Spec(Kind.TOKENS, ("B", 6, 10))}, {})
    assert caught.value.field == "reads.0"
    assert "`words`" in caught.value.help
    assert "attention_pool" in caught.value.help


def test_necks_of_one_feature_refuse_a_second() -> None:
    config = SpatialSoftmax.Config(type="spatial_softmax", reads=["a", "b"])
    with pytest.raises(SpecError, match="reads one feature, not 2") as caught:
        SpatialSoftmax.specs(config, {"a.tokens": TOKENS, "b.tokens": TOKENS}, {})
    assert caught.value.field == "reads.1"
    assert "concat" in caught.value.help


def test_concat_joins_in_the_order_that_it_names(world: Any) -> None:
    features = world.features()
    inputs = {key: world.every_feature[key] for key in features}
    part, tokens = features["vision.tokens"], features["model.queries"]
    config = Concat.Config(type="concat", reads=["model", "vision"], width=4)
    neck = Concat(config, inputs, {})
    assert Concat.specs(config, inputs, {}).keys() == {"tokens"}
    found = neck(features, ("tokens",))["tokens"]
    for values, layer, place in (
        (tokens.values, neck.joined.project["model_queries"], slice(0, 8)),
        (part.values, neck.joined.project["vision_tokens"], slice(8, 14)),
    ):
        torch.testing.assert_close(found.values[:, place], values @ layer.weight.T + layer.bias)
    assert torch.equal(found.mask[:, :8], torch.ones(3, 8, dtype=torch.bool))
    assert torch.equal(found.mask[:, 8:], part.mask)


def test_concat_of_pooled_features_is_their_concatenation() -> None:
    inputs = {"a.pooled": Spec(Kind.POOLED, ("B", 2)), "b.pooled": Spec(Kind.POOLED, ("B", 3))}
    values = {"a.pooled": Feature(torch.randn(4, 2)), "b.pooled": Feature(torch.randn(4, 3))}
    config = Concat.Config(type="concat", reads=["b", "a"])
    assert Concat.specs(config, inputs, {}) == {"pooled": Spec(Kind.POOLED, ("B", 5), "3 (b) + 2 (a)")}
    found = Concat(config, inputs, {})(values, ("pooled",))["pooled"].values
    assert torch.equal(found, torch.cat([values["b.pooled"].values, values["a.pooled"].values], -1))


def test_concat_of_a_varying_number_of_tokens_varies() -> None:
    inputs = {"a.tokens": Spec(Kind.TOKENS, ("B", "L", 3)), "b.pooled": Spec(Kind.POOLED, ("B", 3))}
    specs = Concat.specs(Concat.Config(type="concat", reads=["a", "b"]), inputs, {})
    assert specs["tokens"].dims == ("B", "L + 1", 3)


@pytest.mark.parametrize(("part", "name"), [(Concat, "concat"), (AttentionPool, "attention_pool")])
def test_tokens_of_different_widths_need_a_width(world: Any, part: Any, name: str) -> None:
    with pytest.raises(SpecError, match="one width") as caught:
        part.specs(part.Config(type=name, reads=["vision", "state"]), world.feature_specs, {})
    assert caught.value.field == "width"
    assert caught.value.source == "state.pooled"
    assert "set `width`, such as 10" in caught.value.help


def test_attention_pool_is_attention_of_its_queries() -> None:
    """Return torch's multi-head attention with the same weights."""
    inputs = {"vision.tokens": Spec(Kind.TOKENS, ("B", 6, 8))}
    config = AttentionPool.Config(type="attention_pool", reads=["vision"], queries=3, heads=2)
    AttentionPool.specs(config, inputs, {})
    part = AttentionPool(config, inputs, {}).double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    values, mask = torch.randn(2, 6, 8).double(), torch.rand(2, 6) < 0.6
    mask[:, 0] = True
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True).double()
    ours = part.attention
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        reference.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
        reference.out_proj.weight.copy_(ours.out.weight)
        reference.out_proj.bias.copy_(ours.out.bias)
    normal = torch.nn.functional.layer_norm(values, (8,), part.norm.weight, part.norm.bias)
    expected, _ = reference(part.queries.expand(2, -1, -1), normal, normal, key_padding_mask=~mask)
    found = part({"vision.tokens": Feature(values, mask)}, ("pooled", "tokens"))
    torch.testing.assert_close(found["tokens"].values, expected)
    torch.testing.assert_close(found["pooled"].values, expected.flatten(1))


def test_heads_must_share_the_width() -> None:
    for options, field in (({}, "heads"), ({"width": 6}, "width")):
        config = AttentionPool.Config(type="attention_pool", reads=["vision"], heads=4, **options)
        with pytest.raises(SpecError, match="cannot be shared by 4 heads") as caught:
            AttentionPool.specs(config, {"vision.tokens": TOKENS}, {})
        assert caught.value.field == field


# --- flatten -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [None, 5])
def test_flatten_gives_each_token_a_place_of_its_own(width: int | None) -> None:
    inputs = {"vision.tokens": Spec(Kind.TOKENS, ("B", 3, 4)), "state.pooled": Spec(Kind.POOLED, ("B", 2))}
    config = Flatten.Config(type="flatten", reads=["vision.tokens", "state.pooled"], width=width)
    assert Flatten.specs(config, inputs, {})["pooled"].dims == ("B", width or 14)
    part = Flatten(config, inputs, {}).double()
    tokens, state = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    features = {"vision.tokens": Feature(tokens, mask), "state.pooled": Feature(state)}
    found = part(features, ("pooled",))["pooled"].values.detach().numpy()

    values = np.zeros((2, 14))
    for sample, place in np.ndindex(2, 3):
        if mask[sample, place]:
            values[sample, 4 * place : 4 * place + 4] = tokens[sample, place]
    values[:, 12:] = state
    if width is not None:
        values = values @ part.project.weight.detach().numpy().T + part.project.bias.detach().numpy()
    np.testing.assert_allclose(found, values, atol=1e-12)
    assert part(features, ()) == {}


def test_flatten_wants_a_fixed_number_of_tokens() -> None:
    inputs = {"text.tokens": Spec(Kind.TOKENS, ("B", "L", 4))}
    with pytest.raises(SpecError, match="a fixed number of tokens") as caught:
        Flatten.specs(Flatten.Config(type="flatten", reads=["text"]), inputs, {})
    assert caught.value.source == "text.tokens"
