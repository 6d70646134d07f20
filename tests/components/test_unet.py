"""The U-Net: what it refuses and hides; its numbers are held against LeRobot's in tests/parity."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from policysmith.components.networks.unet import Unet
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Spec

INPUTS = {
    "state.pooled": Spec(Kind.POOLED, ("B", 7)),
    "vision.pooled": Spec(Kind.POOLED, ("B", 5)),
    "action": Spec(Kind.ACTION, ("B", 8, 3)),
}


def make(**options: Any) -> Unet:
    config = Unet.Config(type="unet", **{"widths": [8, 16, 24], "groups": 4, "time_width": 8, **options})
    Unet.specs(config, INPUTS, {"time": "steps"})
    return Unet(config, INPUTS, {"time": "steps"})


def test_hidden_steps_have_no_influence() -> None:
    part, chunk, time = make(), torch.randn(2, 8, 3), torch.tensor([3.0, 50.0])
    context = {"condition": torch.randn(2, 12)}
    is_pad = torch.arange(8) >= torch.tensor([[5], [8]])
    first = part(chunk, time, context, is_pad)
    changed = part(torch.where(is_pad[..., None], 9.0, chunk), time, context, is_pad)
    assert torch.equal(first, changed)
    assert not torch.allclose(first[0], part(chunk, time, context)[0])
    assert torch.equal(first[1], part(chunk, time, context)[1])


@pytest.mark.parametrize("film_scale", [True, False])
def test_time_and_every_feature_count(film_scale: bool) -> None:
    part, chunk = make(film_scale=film_scale), torch.randn(2, 8, 3)
    time, condition = torch.tensor([3.0, 50.0]), torch.randn(2, 12)
    first = part(chunk, time, {"condition": condition})
    for at, changed in (
        (time + 1, condition),
        *((time, condition + torch.eye(12)[i]) for i in range(12)),
    ):
        assert not torch.allclose(part(chunk, at, {"condition": changed}), first, atol=1e-5)


@pytest.mark.parametrize(("horizon", "cure"), [(6, 8), (9, 12)])
def test_the_horizon_is_halved_at_every_level_but_one(horizon: int, cure: int) -> None:
    inputs = {**INPUTS, "action": replace(INPUTS["action"], dims=("B", horizon, 3))}
    config = Unet.Config(type="unet", widths=[8, 16, 24])
    with pytest.raises(SpecError, match=f"a chunk of {horizon} steps cannot be halved 2 times") as caught:
        Unet.specs(config, inputs, {"time": "steps"})
    assert (caught.value.field, caught.value.source) == ("widths", "action")
    assert f"set `data.horizon` to {cure}" in caught.value.help
    assert "`widths`" in caught.value.help


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        ({"widths": [8, 18, 24]}, "widths.1", "4 groups cannot share 18 channels"),
        ({"widths": [12, 16, 24]}, "widths.0", "8 groups cannot share 12 channels"),
        ({"kernel": 4}, "kernel", "no middle"),
    ],
)
def test_sizes_that_do_not_fit(options: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        make(**options)
    assert caught.value.field == field
