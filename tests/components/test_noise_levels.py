"""The named distributions of noise levels, against scipy's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from scipy import stats

from policysmith.components.denoising.noise_levels import NoiseLevels

COUNT = 20_000
CPU = torch.device("cpu")
LEVELS: TypeAdapter[Any] = TypeAdapter(NoiseLevels)

LAWS: list[tuple[dict[str, Any], Any]] = [
    ({"type": "beta"}, stats.beta(1.5, 1.0, loc=0.001, scale=0.999)),
    ({"type": "beta", "alpha": 2.0, "beta": 2.0, "floor": 0.0}, stats.beta(2.0, 2.0)),
    ({"type": "groot_n1"}, stats.beta(1.5, 1.0, scale=1 / 0.999)),
    ({"type": "uniform"}, stats.uniform()),
    ({"type": "logit_normal"}, None),
    ({"type": "logit_normal", "mean": -0.7, "std": 0.5}, None),
    ({"type": "stratified"}, stats.uniform(scale=1 - 1e-5)),
]


def draw(options: dict[str, Any], count: int = COUNT) -> torch.Tensor:
    levels = LEVELS.validate_python(options)
    found: torch.Tensor = levels.draw(count, CPU)
    assert found.shape == (count,)
    assert found.dtype == torch.float32
    return found


@pytest.mark.parametrize(
    ("options", "law"), LAWS, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_levels_follow_their_law(options: dict[str, Any], law: Any) -> None:
    drawn = draw(options).double().numpy()
    if law is None:  # the logit of the level is normal
        drawn = torch.logit(torch.from_numpy(drawn)).numpy()
        law = stats.norm(options.get("mean", 0.0), options.get("std", 1.0))
    assert drawn.mean() == pytest.approx(law.mean(), abs=4 * law.std() / COUNT**0.5)
    assert drawn.std() == pytest.approx(law.std(), rel=0.03)
    assert stats.kstest(drawn, law.cdf).pvalue > 1e-4


def test_groot_n1_oversteps_pure_noise_unless_clamped() -> None:
    """P(u > 0.999) of Beta(1.5, 1) is 1 - 0.999^1.5 = 0.15 %."""
    over = (draw({"type": "groot_n1"}, 400_000) > 1.0).double().mean().item()
    assert over == pytest.approx(1 - 0.999**1.5, rel=0.2)
    assert draw({"type": "groot_n1"}, 400_000).max() <= 1.0 / 0.999 + 1e-6
    clamped = draw({"type": "groot_n1", "clamp": True}, 400_000)
    assert (clamped == 1.0).double().mean().item() == pytest.approx(1 - 0.999**1.5, rel=0.2)
    assert clamped.max() == 1.0


def test_groot_n1_is_the_time_of_the_original() -> None:
    """The time t = (0.999 - u) / 0.999 with u ~ Beta(1.5, 1) has mean 0.40, and is 1 minus the level."""
    time = 1.0 - draw({"type": "groot_n1"}, 200_000)
    assert time.mean().item() == pytest.approx((0.999 - 0.6) / 0.999, abs=0.005)


@pytest.mark.parametrize("count", [1, 2, 7, 256])
def test_stratified_levels_are_evenly_spaced(count: int) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        levels = draw({"type": "stratified"}, count).double().sort().values
        gaps = torch.cat([levels.diff(), (levels[:1] + 1 - levels[-1:])])
        torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / count), atol=2e-5, rtol=0)
        assert levels.min() >= 0.0
        assert levels.max() < 1 - 1e-5 + 1e-7


def test_stratified_levels_are_in_random_order() -> None:
    """So that the repeats of a sample, which stand side by side, are not of one level."""
    levels = draw({"type": "stratified"}, 256)
    assert (levels.diff().abs() > 0.1).double().mean() > 0.5


@pytest.mark.parametrize(
    ("options", "_law"), LAWS, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_levels_are_seeded_and_drawn_on_meta(options: dict[str, Any], _law: Any) -> None:
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(draw(options, 16))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert LEVELS.validate_python(options).draw(5, torch.device("meta")).shape == (5,)


@pytest.mark.parametrize(
    "options",
    [
        {"type": "beta", "alpha": 0.0},
        {"type": "beta", "floor": 1.0},
        {"type": "logit_normal", "std": 0.0},
        {"type": "uniform", "floor": 0.1},
        {"type": "cosine"},
    ],
    ids=str,
)
def test_other_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LEVELS.validate_python(options)
