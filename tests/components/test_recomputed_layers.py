"""Layers of transformers that are computed again, also inside of what is compiled, and where others switch that."""

from __future__ import annotations

import copy
import gc
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers.modeling_layers import GradientCheckpointingLayer

from policysmith.components.layers.recomputation import recompute

from .test_vlm import architecture, build, observations

ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"


def made(family: str, **options: Any) -> Any:
    """Build the same part in training mode every time."""
    torch.manual_seed(0)
    return build(architecture=architecture(family), **options).train()


def gradients(part: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    part.zero_grad()
    features = part(batch, ("tokens", *([] if "florence2" in part.config.architecture else ["key_values"])))
    sum((feature.values**2).sum() for feature in features.values()).backward()
    return {name: p.grad.clone() for name, p in part.named_parameters() if p.grad is not None}


def runs(part: Any, batch: dict[str, Tensor]) -> int:
    """Count the runs of the first layer's attention in a step."""
    found: list[int] = []
    attention = next(part._family.layers(part.model)[0].children())
    hook = attention.register_forward_pre_hook(lambda *_: found.append(1))
    gradients(part, batch)
    hook.remove()
    return len(found)


def agree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3_vl", "florence2"])
def test_gradients_are_the_same(family: str) -> None:
    part, batch = made(family), observations()
    expected = gradients(part, batch)
    recompute(part)
    agree(gradients(part, batch), expected)
    assert runs(part, batch) == 2


@pytest.mark.parametrize("family", ["paligemma", "smolvlm"])
def test_compiled_layers_compute_products_again_and_keep_what_attention_gives(family: str) -> None:
    batch = observations()
    expected = gradients(made(family), batch)
    counts = []
    for again in (False, True):
        part = made(family)
        if again:
            recompute(part)
        torch._dynamo.reset()
        for layer in filter(lambda module: isinstance(module, GradientCheckpointingLayer), part.modules()):
            layer.compile(backend="aot_eager_decomp_partition", fullgraph=True)
        gradients(part, batch)
        with profile(activities=[ProfilerActivity.CPU]) as calls:
            found = gradients(part, batch)
        agree(found, expected)
        counts.append(Counter(event.name for event in calls.events()))
    kept, again = counts
    assert kept[ATTENTION] == again[ATTENTION] > 0
    assert kept["aten::mm"] + 2 <= again["aten::mm"]


def test_frozen_layers_that_gradients_flow_through_are_computed_again() -> None:
    part = made("smolvlm", soft_prompts=2)
    for name, parameter in part.named_parameters():
        parameter.requires_grad = name == "soft_prompts"
    recompute(part)
    part.model.eval()
    assert runs(part, observations()) == 2


def test_earlier_tokens_are_seen_when_computed_again() -> None:
    batch, found = observations(), []
    for again in (False, True):
        part = made("paligemma", decoder=True)
        if again:
            recompute(part)
        past = part(batch, ("decoder",))["decoder"]
        hidden, _ = past.decoder.extend(past, past.decoder.embed(torch.tensor([[5, 6], [7, 8]])))
        hidden.square().sum().backward()
        found.append({name: p.grad for name, p in part.named_parameters() if p.grad is not None})
    agree(found[1], found[0])


def test_transformers_can_switch_it_on_and_off() -> None:
    part, batch = made("paligemma"), observations()
    expected = gradients(part, batch)
    enable = getattr(part.model, "activation_checkpointing_enable", part.model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    agree(gradients(part, batch), expected)
    assert runs(part, batch) == 2
    disable = getattr(
        part.model, "activation_checkpointing_disable", part.model.gradient_checkpointing_disable
    )
    disable()
    assert runs(part, batch) == 1
    recompute(part)
    recompute(part)
    assert runs(part, batch) == 2


def test_a_copy_computes_its_own_layers_again() -> None:
    part, batch = made("paligemma"), observations()
    recompute(part)
    other = copy.deepcopy(part)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.zero_()
    assert any(gradient.any() for gradient in gradients(other, batch).values())


def test_weights_go_with_the_policy() -> None:
    part = build(architecture=architecture("paligemma"))
    recompute(part)
    layer = weakref.ref(part._family.layers(part.model)[0])
    gc.collect()
    gc.disable()
    try:
        del part
        assert layer() is None
    finally:
        gc.enable()
