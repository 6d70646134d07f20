"""The engine returns the actions of the policy, for every recipe, on a CPU and on a GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from policysmith.builder import Builder, RecipePolicy
from policysmith.builder.inference.example import example_samples
from policysmith.builder.inference.runner import Runner
from policysmith.schemas.errors import SpecError

RECIPES = sorted((Path(__file__).resolve().parents[3] / "recipes" / "tiny").glob("*.yaml"))
CLOSE = 1e-4
"""Largest difference in float32, in units of the actions' deviation in the data."""
DEVIATION, COSINE = 0.02, 0.9995
"""Largest root mean square of differences in bfloat16, in the same units, and least cosine."""


def build(recipe: Path) -> RecipePolicy:
    """A policy away from its initial weights, under which some heads would do nothing."""
    torch.manual_seed(0)
    policy = Builder.from_recipe(recipe).build().eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
    assert isinstance(policy, RecipePolicy)
    return policy


def predict(source: Any, samples: list[dict[str, Any]], seed: int = 3) -> Tensor:
    chunk: Tensor = source.predict(samples, torch.Generator().manual_seed(seed))
    return chunk.float().cpu()


def differences(policy: RecipePolicy, found: Tensor, expected: Tensor) -> tuple[Tensor, float]:
    """Differences in units of the actions' deviation, in dimensions that vary in the data, and the cosine of all."""
    deviation = torch.tensor(policy.content["statistics"]["action"]["std"])
    varies = deviation > 1e-6
    assert found.shape == expected.shape
    cosine = torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
    return ((found - expected) / deviation)[..., varies], float(cosine)


def assert_close(policy: RecipePolicy, runner: Runner, found: Tensor, expected: Tensor) -> None:
    off, cosine = differences(policy, found, expected)
    if runner.precision == "float32":
        assert off.abs().max() <= CLOSE
    else:
        assert off.square().mean().sqrt() <= DEVIATION
        assert cosine >= COSINE


def chooses(policy: RecipePolicy) -> bool:
    """Return True for heads that write tokens, of which random weights make many almost equally likely."""
    return policy.head.config.type == "fast"


def assert_features_close(policy: RecipePolicy, runner: Runner, samples: list[dict[str, Any]]) -> None:
    assert isinstance(runner.policy, RecipePolicy)
    made = []
    for each in (policy, runner.policy):
        batch = each.observations_in(each._on_device(each.collator(samples)))
        with torch.no_grad():
            made.append(each.features(each.transform(batch)))
    for key, feature in made[0].items():
        expected, found = feature.values.float(), made[1][key].values.float()
        assert (found - expected).norm() <= DEVIATION * expected.norm(), key


def assert_missing_keys_are_named(policy: RecipePolicy, samples: list[dict[str, Any]]) -> None:
    batch = policy.collator(samples)
    for key in policy.observed.required:
        rest = {name: value for name, value in batch.items() if name != key}
        with pytest.raises(SpecError, match=f"the batch lacks `{re.escape(key)}`, which the policy reads"):
            policy.inference(rest)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_cpu_computes_what_the_policy_computes(recipe: Path) -> None:
    policy = build(recipe)
    samples = example_samples(policy, 2)
    expected = predict(policy, samples)
    for precision in ("float32", "bfloat16"):
        runner = policy.runner(precision=precision)
        found = predict(runner, samples)
        if precision == "float32" or not chooses(policy):
            assert_close(policy, runner, found, expected)
        else:
            assert_features_close(policy, runner, samples)
    assert policy.dtype is torch.float32, "the policy itself was cast"
    assert_missing_keys_are_named(policy, samples)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_gpu_replays_what_the_policy_computes(
    recipe: Path, precision: Any, caplog: pytest.LogCaptureFixture
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    policy = build(recipe)
    runner = policy.runner("cuda", precision)
    device = torch.Generator("cuda")
    eager = build(recipe).to("cuda")
    for seed, size in enumerate([1, 1, 2, 1, 2]):
        samples = example_samples(policy, size, seed)
        if precision == "bfloat16" and chooses(policy):
            runner.predict(samples)
            continue
        found = runner.predict(samples, device.manual_seed(seed))
        expected = eager.predict(samples, device.manual_seed(seed)).cpu()
        assert_close(policy, runner, found, expected)
        assert_close(policy, runner, predict(runner, samples, seed), predict(eager, samples, seed))
    said = [record.message for record in caplog.records if "CUDA graph" in record.message]
    assert len(said) == (recipe.stem == "pi0_fast"), said
