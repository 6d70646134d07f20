"""The backbone `conv`: what a token sees, and what does not fit."""

from __future__ import annotations

import itertools

import pytest
import torch

from policysmith.components.backbones.conv import Conv
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Spec

CAMERA = "observation.images.top"


def inputs(height: int = 32, width: int = 48) -> dict[str, Spec]:
    return {CAMERA: Spec(Kind.IMAGE, ("B", 1, 3, height, width))}


def test_octo_tokenizer_has_the_published_size() -> None:
    """Octo's SmallStem16 for three channels, by its config: scripts/configs/octo_pretrain_config.py."""
    with torch.device("meta"):
        part = Conv(Conv.Config(type="conv"), inputs(), {})
    sizes = [3, 32, 96, 192, 384]
    convolutions = sum(9 * a * b + 3 * b for a, b in itertools.pairwise(sizes))
    assert sum(p.numel() for p in part.parameters()) == convolutions + 384 * 512 + 512


@pytest.mark.parametrize(("height", "width"), [(32, 48), (30, 47)])
def test_a_token_is_a_place_of_the_image(height: int, width: int) -> None:
    """A dot in a black image changes only the tokens near it, row by row."""
    torch.manual_seed(0)
    config = Conv.Config(type="conv", channels=[4, 8, 8], groups=1, width=6)
    spec = Conv.specs(config, inputs(height, width), {})["tokens"]
    assert spec.grid == (1, 4, 6)
    part = Conv(config, inputs(height, width), {})
    for layer in part.layers:
        layer[1] = torch.nn.Identity()  # norms would carry the dot everywhere
    black = torch.zeros(1, 1, 3, height, width)
    dotted = black.clone()
    dotted[..., 17, 33] = 1.0
    one, other = (part({CAMERA: image}, ["tokens"])["tokens"].values for image in (black, dotted))
    changed = (one != other).any(-1).unflatten(1, (4, 6))[0]
    assert changed[2, 4]
    assert not changed[0].any()
    assert not changed[:, :3].any()


def test_pooled_is_the_mean_of_the_tokens() -> None:
    part = Conv(Conv.Config(type="conv", channels=[4, 8], groups=2, width=6), inputs(), {})
    found = part({CAMERA: torch.randn(2, 1, 3, 32, 48)}, ["tokens", "pooled"])
    torch.testing.assert_close(found["pooled"].values, found["tokens"].values.mean(1))


def test_groups_share_the_channels() -> None:
    with pytest.raises(SpecError, match="6 channels cannot be shared by 4 groups") as caught:
        Conv.specs(Conv.Config(type="conv", channels=[4, 6], groups=4), inputs(), {})
    assert caught.value.field == "channels.1"
