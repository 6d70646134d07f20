"""Contract of backbones; necks, too, compute only the requested outputs."""

from __future__ import annotations

import pytest
import torch

from policysmith.components.layers.recomputation import recompute
from policysmith.components.pretrained import lora
from policysmith.components.registry import (
    BACKBONES,
    NECKS,
)
from policysmith.schemas.errors import SpecError
from policysmith.schemas.part import LoraSection

from .built import Built, assert_equal, of, randomize, skip_without_weights


@of(BACKBONES, NECKS)
def test_only_what_is_asked_for_is_computed(built: Built) -> None:
    part, batch = built.make().eval(), built.features()
    if built.kind == "backbones":
        batch = built.world.batch(floats=True)
    published = tuple(built.specs())
    whole = part(batch, published)
    for name in published:
        alone = part(batch, (name,))
        assert tuple(alone) == (name,)
        assert torch.equal(alone[name].values, whole[name].values)
    for name, feature in whole.items():
        shape = feature.values.shape
        assert feature.mask is None or feature.mask.shape == (shape[0], shape[-2]), name
        assert feature.mask is None or feature.mask.dtype == torch.bool, name


@of(BACKBONES)
def test_backbone_says_which_input_is_missing(built: Built) -> None:
    config = built.config.model_copy(update={"reads": ["observation.nothing"]})
    with pytest.raises(SpecError, match=r"observation\.nothing") as caught:
        built.cls.specs(config, built.inputs, built.facts)
    assert caught.value.field == "reads.0"
    with pytest.raises(SpecError):
        built.cls.specs(built.config, {"action": built.inputs["action"]}, built.facts)


@of(BACKBONES)
def test_backbone_reads_what_it_says_and_nothing_else(built: Built) -> None:
    read = built.cls.reads(built.config, built.inputs)
    part, batch = built.make().eval(), built.world.batch(floats=True)
    needed = {key: value for key, value in batch.items() if key in read or key == "task.attention_mask"}
    for key, feature in part(needed, tuple(built.specs())).items():
        assert torch.equal(feature.values, part(batch, tuple(built.specs()))[key].values)


@of(BACKBONES)
@pytest.mark.parametrize("adapted", [False, True], ids=["frozen in part", "adapted"])
def test_gradients_reach_all_that_trains_and_nothing_else(built: Built, adapted: bool) -> None:
    part = built.make()
    skip_without_weights(part)
    if adapted:
        layers = list(lora.adaptable(part))
        lora.adapt(part, LoraSection(rank=2, targets=layers))
        assert lora.count_adapters(part) == len(layers)
    else:
        for index, parameter in enumerate(part.parameters()):
            parameter.requires_grad_(index % 2 == 0)
    trains = {name for name, parameter in part.named_parameters() if parameter.requires_grad}
    randomize(part)
    sum((value**2).mean() for value in built.run(part).values()).backward()  # type: ignore[union-attr]
    reached = {name for name, p in part.named_parameters() if p.grad is not None and (p.grad != 0).any()}
    assert {name for name in trains - reached if not name.endswith(("key.bias", "k_proj.bias"))} == set()
    assert reached <= trains


@of(BACKBONES)
def test_layers_computed_again_give_the_same(built: Built) -> None:
    plain, again = built.make().train(), built.make().train()
    try:
        recompute(again)
    except SpecError as error:
        pytest.skip(f"it says that it cannot: {error}")
    results = []
    for part in (plain, again):
        calls: list[str] = []
        for name, module in part.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name, calls=calls: calls.append(name))
        outputs = built.run(part)
        forward = len(calls)
        sum((value**2).mean() for value in outputs.values()).backward()  # type: ignore[union-attr]
        assert (len(calls) > forward) == (part is again)
        results.append(outputs | {name: p.grad for name, p in part.named_parameters() if p.grad is not None})
    assert_equal(*results)
