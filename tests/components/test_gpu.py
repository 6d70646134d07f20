"""The parts on a GPU: the same results as on a CPU, and nothing that only a CPU forgives."""

from __future__ import annotations

import copy
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from policysmith.components.base import Feature
from policysmith.components.heads.flow_matching import FlowMatching
from policysmith.components.kernels import dispatch
from policysmith.components.registry import BACKBONES, HEADS, NECKS, NETWORKS, TRANSFORMS
from policysmith.schemas.specs import FEATURES

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_transforms_agree_with_the_cpu_in_evaluation(name: str, world: Any, tmp_path: Path) -> None:
    part = TRANSFORMS.get(name)
    transform: Any = part(part.example(), world.specs, world.facts).eval()
    ours, theirs = transform(world.batch(device="cuda")), transform(world.batch())
    for key, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert ours[key].dtype == value.dtype
            resizes = name in ("resize", "resize_with_pad") and value.dtype == torch.uint8
            level = 1 if resizes else 1e-5
            torch.testing.assert_close(ours[key].cpu().float(), value.float(), atol=level, rtol=1e-5)
    back = transform.inverse(ours)["action"]
    torch.testing.assert_close(back.cpu(), world.batch()["action"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_transforms_never_wait_for_the_gpu(name: str, world: Any, tmp_path: Path) -> None:
    part = TRANSFORMS.get(name)
    transform: Any = part(part.example(), world.specs, world.facts).train()
    batch = world.batch(device="cuda")
    transform(batch)  # the first call may move constants
    torch.cuda.set_sync_debug_mode("error")
    try:
        transform.inverse(transform(batch))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", NECKS.names())
def test_necks_agree_with_the_cpu(name: str, world: Any, tmp_path: Path) -> None:
    part = NECKS.get(name)
    config = part.example()
    neck: Any = part(config, world.every_feature, {})
    outputs = tuple(part.specs(config, world.every_feature, {}))
    theirs = neck(world.features(), outputs)
    ours = neck.to("cuda")(world.features(device="cuda"), outputs)
    for key, feature in theirs.items():
        torch.testing.assert_close(ours[key].values.cpu(), feature.values, atol=1e-4, rtol=1e-4)


def valid(feature: Feature) -> torch.Tensor:
    """Zero the values of masked tokens, also of keys and values (B, L, 2, G, N, E)."""
    if feature.mask is None:
        return feature.values
    mask = feature.mask[..., None]
    return feature.values * (mask if feature.values.ndim == mask.ndim else mask[:, None, None, None])


@pytest.mark.parametrize("name", NECKS.names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_necks_do_not_see_what_is_masked_even_where_all_is(
    name: str, dtype: torch.dtype, world: Any, tmp_path: Path
) -> None:
    part = NECKS.get(name)
    config = part.example()
    neck: Any = part(config, world.every_feature, {}).to("cuda", dtype)
    results = []
    for values in (None, 9.0):
        features = {
            key: feature
            if feature.mask is None
            else replace(
                feature,
                values=feature.values if values is None else torch.full_like(feature.values, values),
                mask=torch.zeros_like(feature.mask),
            )
            for key, feature in world.features(device="cuda", dtype=dtype).items()
        }
        published = neck(features, tuple(part.specs(config, world.every_feature, {})))
        shown = [valid(feature) for feature in published.values()]
        assert all(value.isfinite().all() for value in shown)
        sum(value.square().sum() for value in shown).backward()
        assert all(p.grad.isfinite().all() for p in neck.parameters() if p.grad is not None)
        results.append(shown)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def head_of(name: str, world: Any, directory: Path) -> Any:
    """Build a head from its example on the GPU, away from its initial weights."""
    part = HEADS.get(name)
    config = part.example()
    kinds, batch = part.kinds(config), world.batch(64)
    inputs = {
        key: spec
        for key, spec in world.every_feature.items()
        if spec.kind not in FEATURES or (spec.kind in kinds and (config.reads is None or key in config.reads))
    }
    facts = part.facts(config) | part.fit(config, inputs, {}, lambda: (batch["action"], world.is_pad(batch)))
    head: Any = part(config, inputs, facts).to("cuda")
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return head


@pytest.mark.parametrize("name", HEADS.names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_heads_train_and_sample_without_a_valid_token(
    name: str, dtype: torch.dtype, world: Any, tmp_path: Path
) -> None:
    made = head_of(name, world, tmp_path).to(dtype)
    batch, features = world.batch(device="cuda"), world.features(device="cuda", dtype=dtype)
    tokens = features["vision.tokens"]
    mask = tokens.mask & (torch.arange(3, device="cuda") > 0)[:, None]
    results = []
    for values in (tokens.values, torch.where(mask[..., None], tokens.values, 9.0)):
        torch.manual_seed(0)
        head = copy.deepcopy(made)  # a loss may move a head's buffers
        shown = {**features, "vision.tokens": Feature(values, mask)}
        loss = head.loss(shown, batch["action"], world.is_pad(batch))["loss"]
        loss.backward()
        assert all(p.grad.isfinite().all() for p in head.parameters())
        results.append((loss, head.sample(shown, torch.Generator().manual_seed(0))))
    assert results[0][0].isfinite()
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("network", ["dit", "groot_dit", "unet"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_networks_learn_the_same_with_kernels_and_without(
    network: str, bf16: bool, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 a tiny network's gradients may turn with one rounding, so they are held against others' in the median."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    part = NETWORKS.get(network)
    config = FlowMatching.Config(type="flow_matching", network=part.example())
    kinds = {
        *part.accepts,
        *(spec.kind for spec in world.feature_specs.values() if spec.kind not in FEATURES),
    }
    inputs = {key: spec for key, spec in world.feature_specs.items() if spec.kind in kinds}
    batch, features = world.batch(device="cuda"), world.features(device="cuda")

    def gradients(head: Any, wanted: bool, bf16: bool) -> list[torch.Tensor]:
        monkeypatch.setattr(dispatch, "WANTED", wanted)
        torch.manual_seed(0)
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            loss = head.loss(features, batch["action"], world.is_pad(batch))["loss"]
        return [loss.detach(), *torch.autograd.grad(loss, list(head.parameters()))]

    def error(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
        pairs = zip(found, exact, strict=True)
        return statistics.mean(float((x - y).norm() / y.norm().clamp_min(1e-6)) for x, y in pairs)

    fused, plain = [], []
    for seed in range(7):
        torch.manual_seed(seed)
        head: Any = FlowMatching(config, inputs, {}).to("cuda").eval()  # dropout draws by type
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        exact = gradients(head, wanted=False, bf16=False)
        fused.append(error(gradients(head, wanted=True, bf16=bf16), exact))
        plain.append(error(gradients(head, wanted=False, bf16=bf16), exact))
    most = 1.5 * statistics.median(plain) + 2e-3 if bf16 else 1e-4
    assert statistics.median(fused) < most


@pytest.mark.parametrize("name", [name for name in HEADS.names() if not HEADS.get(name).waits_for_device])
def test_losses_never_wait_for_the_gpu(name: str, world: Any, tmp_path: Path) -> None:
    head = head_of(name, world, tmp_path)
    batch, features = world.batch(device="cuda"), world.features(device="cuda")
    head.loss(features, batch["action"], world.is_pad(batch))["loss"].backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        head.loss(features, batch["action"], world.is_pad(batch))["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", BACKBONES.names())
def test_backbones_agree_with_the_cpu(name: str, world: Any, tmp_path: Path) -> None:
    part = BACKBONES.get(name)
    config = part.example()
    backbone: Any = part(config, world.specs, part.facts(config)).eval()
    with torch.no_grad():
        theirs = backbone(world.batch(floats=True), ("pooled", "tokens"))
        ours = backbone.to("cuda")(world.batch(device="cuda", floats=True), ("pooled", "tokens"))
        with torch.autocast("cuda", torch.bfloat16):
            rough = backbone(world.batch(device="cuda", floats=True), ("pooled", "tokens"))
    for key, feature in theirs.items():
        torch.testing.assert_close(ours[key].values.cpu(), feature.values, atol=5e-3, rtol=5e-3)
        assert rough[key].values.isfinite().all()


def test_levels_follow_the_beta_distribution(world: Any) -> None:
    config = FlowMatching.Config(type="flow_matching")
    head = FlowMatching(config, world.feature_specs, {}).to("cuda")
    level, _ = head.draw(torch.zeros(100_000, 4, 3, device="cuda"))
    drawn = (level - 0.001) / 0.999
    assert drawn.mean().item() == pytest.approx(0.6, abs=0.005)
    assert drawn.std().item() == pytest.approx((1.5 / (2.5**2 * 3.5)) ** 0.5, abs=0.005)
