"""What every registered part keeps. A new file in one of their folders is tested here unasked."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re
import shutil
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from policysmith.components import lora
from policysmith.components.base import Feature
from policysmith.components.heads.flow_matching import FlowMatching
from policysmith.components.recomputation import recompute
from policysmith.components.registry import (
    BACKBONES,
    COLLATORS,
    HEADS,
    NECKS,
    NETWORKS,
    REGISTRIES,
    TRANSFORMS,
)
from policysmith.schemas.errors import SpecError
from policysmith.schemas.part import LoraSection
from policysmith.schemas.specs import FEATURES, Kind, Range, Spec

PARTS = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry.names()]
MODULES = [(kind, name) for kind, name in PARTS if kind != "collators"]
WEIGHTED = [(kind, name) for kind, name in PARTS if kind in ("backbones", "necks", "heads", "networks")]


class Built:
    """A part built from its own tiny config, in the small world. A network is built inside a flow-matching head."""

    def __init__(self, kind: str, name: str, world: Any, directory: Path) -> None:
        self.kind, self.name, self.world = kind, name, world
        self.cls = REGISTRIES[kind].get(name)
        self.config = self.cls.tiny(directory)
        self.whole, self.whole_config = self.cls, self.config
        if kind == "networks":
            self.whole = FlowMatching
            self.whole_config = FlowMatching.Config(type="flow_matching", network=self.config, steps=4)
        self.facts = {
            **self.cls.facts(self.config),
            **(world.facts if kind in ("transforms", "collators") else {}),
        }
        self.inputs = self._inputs()
        if self.is_head:
            self.facts |= self.whole.fit(self.whole_config, self.inputs, self.facts, self._chunks)

    @property
    def is_head(self) -> bool:
        return self.kind in ("heads", "networks")

    def _inputs(self) -> dict[str, Any]:
        given: dict[str, Any] = self.world.every_feature
        if self.is_head:
            kinds, named = self.whole.kinds(self.whole_config), self.whole_config.reads
            return {
                key: spec
                for key, spec in given.items()
                if spec.kind not in FEATURES or (spec.kind in kinds and (named is None or key in named))
            }
        if self.kind == "necks":
            named = [entry for role in self.cls.roles for entry in getattr(self.config, role) or ()]
            return {entry: given[entry] for entry in named}
        return self.world.specs  # type: ignore[no-any-return]

    def _chunks(self) -> tuple[Tensor, Tensor]:
        batch = self.world.batch(64)
        return batch["action"].clamp(-1.0, 1.0), self.world.is_pad(batch)

    def features(
        self, size: int = 3, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> dict[str, Any]:
        """What a head, a network or a neck reads."""
        found = self.world.features(size, device, dtype=dtype)
        return {key: feature for key, feature in found.items() if key in self.inputs}

    def make(self, device: str = "cpu", seed: int = 0) -> Any:
        torch.manual_seed(seed)
        with torch.device(device):
            if self.kind == "collators":
                return self.cls(self.config, self.facts)
            return self.whole(self.whole_config, self.inputs, self.facts)

    def specs(self) -> dict[str, Any]:
        return self.whole.specs(self.whole_config, self.inputs, self.facts)  # type: ignore[no-any-return]

    def run(self, part: Any, size: int = 3, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """Everything that the part computes, in tensors by name."""
        torch.manual_seed(seed)
        dtype = next((p.dtype for p in part.parameters()), torch.float32)
        if self.kind in ("backbones", "necks"):
            given = self.world.batch(size, device, floats=True)
            given = given if self.kind == "backbones" else self.features(size, device, dtype)
            found = part(given, tuple(self.specs()))
            return {key: feature.values for key, feature in found.items()}
        if self.is_head:
            features, batch = self.features(size, device, dtype), self.world.batch(size, device)
            losses = part.loss(features, batch["action"], self.world.is_pad(batch))
            return {**losses, "action": part.sample(features, torch.Generator().manual_seed(seed))}
        found = part(self.world.batch(size, device))
        return {key: value for key, value in found.items() if isinstance(value, Tensor)}


@pytest.fixture
def built(request: pytest.FixtureRequest, world: Any, tmp_path: Path) -> Built:
    kind, name = request.param
    return Built(kind, name, world, tmp_path)


def every(parts: list[tuple[str, str]]) -> Any:
    return pytest.mark.parametrize(
        "built", parts, indirect=True, ids=[f"{kind}-{name}" for kind, name in parts]
    )


def of(*registries: Any) -> Any:
    return every([(registry.kind, name) for registry in registries for name in registry.names()])


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value.dtype == second[key].dtype, key
        assert torch.equal(value, second[key]), key


def randomise(module: nn.Module) -> None:
    """Move every parameter off its initial value: zero gates let no gradient through."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


# --- configs -----------------------------------------------------------------------------------------------------


@every(PARTS)
def test_config_is_closed_strict_and_frozen(built: Built) -> None:
    held = built.config.model_dump(mode="json")
    assert built.cls.Config.model_validate(held) == built.config
    with pytest.raises(ValidationError, match="extra_forbidden"):
        built.cls.Config.model_validate({**held, "no_such_option": 1})
    with pytest.raises(ValidationError, match="frozen"):
        built.config.type = "other"
    for name, field in built.cls.Config.model_fields.items():
        if field.annotation in (int, float, bool):
            with pytest.raises(ValidationError):
                built.cls.Config.model_validate({**held, name: "1"})


@every(PARTS)
def test_config_documents_every_option_and_requires_its_type(built: Built) -> None:
    fields = built.cls.Config.model_fields
    assert typing.get_args(fields["type"].annotation) == (built.name,)
    assert fields["type"].is_required()
    assert [name for name, field in fields.items() if not field.description] == []
    assert built.cls.Config.__doc__
    assert json.loads(json.dumps(built.cls.Config.model_json_schema()))["additionalProperties"] is False
    assert built.cls.__doc__


@every(PARTS)
def test_facts_are_json_and_replace_what_they_came_from(built: Built, tmp_path: Path) -> None:
    assert json.loads(json.dumps(built.facts)) == built.facts
    if built.kind == "collators":
        return  # a collator is rebuilt from its assets
    first = built.run(built.make().eval())
    shutil.rmtree(tmp_path)
    built.facts = json.loads(json.dumps(built.facts))
    assert_equal(first, built.run(built.make().eval()))


# --- networks ----------------------------------------------------------------------------------------------------


@every(WEIGHTED)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [1, 3])
def test_published_specs_are_the_real_shapes(
    built: Built, device: str, dtype: torch.dtype, size: int
) -> None:
    part = built.make(device).to(dtype)
    with torch.device(device):
        outputs = built.run(part, size, device)
    for key, spec in built.specs().items():
        assert tuple(outputs[key].shape) == tuple({"B": size}.get(dim, dim) for dim in spec.dims), key
        assert device == "meta" or outputs[key].isfinite().all(), key


def skip_without_weights(part: nn.Module) -> None:
    if not list(part.parameters()):
        pytest.skip("the part has no weights")


@every(WEIGHTED)
def test_gradients_reach_every_parameter(built: Built) -> None:
    part = built.make()
    skip_without_weights(part)
    randomise(part)
    for _ in range(2 if built.is_head else 1):  # a head may train its weights in turns
        outputs = built.run(part)
        total = outputs["loss"] if built.is_head else sum((v**2).mean() for v in outputs.values())
        total.backward()  # type: ignore[union-attr]
    dead = [name for name, p in part.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    # the key's bias adds the same to every score, so that softmax does not see it, and the first self-attention of a
    # DETR decoder mixes values that are all the same
    idle = re.compile(r"(.*\.)?(key|k_proj)\.bias|decoder\.layers\.0\.attention\..*")
    assert [name for name in dead if not idle.fullmatch(name)] == []


@every(WEIGHTED)
def test_blocks_compile_each_as_one_graph(built: Built) -> None:
    part = built.make().eval()
    randomise(part)
    blocks, graphs = part.repeated_blocks(), []
    if not blocks:
        pytest.skip("the part repeats no layer")
    expected = built.run(part)

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    for block in blocks:
        block.compile(fullgraph=True, backend=backend)
    assert_equal(expected, built.run(part))
    assert graphs


@every(WEIGHTED)
def test_reloaded_state_gives_the_same_bits(built: Built, tmp_path: Path) -> None:
    first, second = built.make(seed=0), built.make(seed=1)
    skip_without_weights(first)
    randomise(first)
    first, second = first.eval(), second.eval()
    expected = built.run(first)
    assert any(not torch.equal(value, built.run(second)[key]) for key, value in expected.items())
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)
    assert_equal(expected, built.run(second))


@every(MODULES)
def test_built_on_meta_it_is_made_whole_by_its_state(built: Built) -> None:
    reference, empty = built.make().eval(), built.make("meta").eval()
    for module in empty.modules():
        plain = [key for key, value in vars(module).items() if isinstance(value, Tensor)]
        assert plain == [], f"{type(module).__name__} holds tensors that are no buffers"
    assert all(value.is_meta for value in (*empty.parameters(), *empty.buffers()))
    whole = empty.to_empty(device="cpu")
    whole.load_state_dict(reference.state_dict(), strict=True)
    kept = dict(reference.named_buffers())
    for (
        prefix,
        module,
    ) in whole.named_modules():  # libraries keep some outside the state; the policy restores those
        own = type(module).__module__.startswith("policysmith")
        for name in module._non_persistent_buffers_set:
            assert not own, f"{name} is not saved"
            module._buffers[name].copy_(kept[f"{prefix}.{name}".removeprefix(".")])
    assert_equal(built.run(reference), built.run(whole))


@every(MODULES)
def test_copies_and_pickles_behave_the_same(built: Built) -> None:
    part = built.make()
    part.eval()
    expected = built.run(part)
    assert_equal(expected, built.run(copy.deepcopy(part)))
    assert_equal(expected, built.run(pickle.loads(pickle.dumps(part))))


@every(MODULES)
def test_samples_of_a_batch_do_not_meet(built: Built) -> None:
    part = built.make().eval()
    randomise(part)
    if built.is_head:
        features = built.features()
        one = {key: rows(feature, slice(1)) for key, feature in features.items()}
        changed = {key: replace_rows(feature, slice(1, 3)) for key, feature in features.items()}
        draws = [part.sample(f, torch.Generator().manual_seed(0))[:1] for f in (features, changed, one)]
        torch.testing.assert_close(draws[0], draws[1])
        return
    outputs = (tuple(built.specs()),) if built.kind in ("backbones", "necks") else ()
    batch = (
        built.features() if built.kind == "necks" else built.world.batch(3, floats=built.kind == "backbones")
    )
    one = {
        key: rows(value, slice(1)) if isinstance(value, Feature) else value[:1]
        for key, value in batch.items()
    }
    alone, together = part(one, *outputs), part(batch, *outputs)
    for key, value in alone.items():
        both = (value.values, together[key].values) if isinstance(value, Feature) else (value, together[key])
        if isinstance(both[0], Tensor):
            torch.testing.assert_close(both[0], both[1][:1], atol=1e-5, rtol=1e-5)


def rows(feature: Feature, which: slice) -> Feature:
    """Some samples of a feature."""
    held = (feature.values, feature.mask, feature.end)
    return Feature(*(None if value is None else value[which] for value in held))  # type: ignore[arg-type]


def replace_rows(feature: Feature, which: slice) -> Feature:
    """The feature with other values in some samples."""
    values = feature.values.clone()
    values[which] += 1.0
    return dataclasses.replace(feature, values=values)


@every(PARTS)
def test_what_comes_in_is_never_changed(built: Built) -> None:
    part = built.make()
    if built.kind == "collators":
        samples = samples_of(built)
        before = copy.deepcopy(samples)
        part(samples)
        for sample, kept in zip(samples, before, strict=True):
            assert_same_batch(sample, kept)
        return
    part.train()
    batch, features = built.world.batch(floats=built.kind == "backbones"), built.features()
    before = copy.deepcopy((batch, features))
    if built.kind == "backbones":
        part(batch, tuple(built.specs()))
    elif built.kind == "necks":
        part(features, tuple(built.specs()))
    elif built.is_head:
        part.loss(features, batch["action"], built.world.is_pad(batch))
        part.sample(features)
    else:
        changed = part(batch)
        part.inverse(changed)
        for value in changed.values():  # and what comes out may be written to, where it is new
            if isinstance(value, Tensor) and not any(value is old for old in batch.values()):
                value.zero_()
    assert_same_batch(batch, before[0])
    for key, feature in features.items():
        assert torch.equal(feature.values, before[1][key].values)


def assert_same_batch(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]) if isinstance(value, Tensor) else value == second[key], key


# --- backbones ---------------------------------------------------------------------------------------------------


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
        assert lora.count(part) == len(layers)
    else:
        for index, parameter in enumerate(part.parameters()):
            parameter.requires_grad_(index % 2 == 0)
    trains = {name for name, parameter in part.named_parameters() if parameter.requires_grad}
    randomise(part)
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


# --- necks -------------------------------------------------------------------------------------------------------


def of_valid(published: dict[str, Feature]) -> dict[str, Tensor]:
    """The values of outputs, without those of masked tokens."""
    return {
        key: feature.values
        if feature.mask is None
        else feature.values.masked_fill(~feature.mask[..., None], 0.0)
        for key, feature in published.items()
    }


@of(NECKS)
def test_masked_tokens_have_no_influence_on_a_neck(built: Built) -> None:
    part, features, outputs = built.make().eval(), built.features(), tuple(built.specs())
    randomise(part)
    if all(feature.mask is None for feature in features.values()):
        pytest.skip("nothing that it reads has a mask")
    whole, hidden, shown = (
        of_valid(part({key: masked_where(f, change, hides) for key, f in features.items()}, outputs))
        for change, hides in (
            (lambda v: v, True),
            (lambda v: v * 0 + 50.0, True),
            (lambda v: 2 * v + 1, False),
        )
    )
    assert_equal(whole, hidden)
    assert all(not torch.equal(value, shown[key]) for key, value in whole.items())


@of(NECKS)
def test_a_neck_without_a_valid_token_is_finite(built: Built) -> None:
    part, outputs = built.make(), tuple(built.specs())
    randomise(part)
    some = (torch.arange(3) > 0)[:, None]
    features = {
        key: feature if feature.mask is None else dataclasses.replace(feature, mask=feature.mask & some)
        for key, feature in built.features().items()
    }
    published = part(features, outputs)
    assert all(feature.values.isfinite().all() for feature in published.values())
    if list(part.parameters()):
        sum((value**2).sum() for value in of_valid(published).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad.isfinite().all() for p in part.parameters() if p.grad is not None)


# --- heads -------------------------------------------------------------------------------------------------------


@of(HEADS, NETWORKS)
def test_head_reads_each_kind_that_it_accepts_or_says_why_not(built: Built) -> None:
    accepted = [key for key, spec in built.inputs.items() if spec.kind in FEATURES]
    assert accepted
    read = 0
    for key in accepted:
        built.inputs = {name: built.world.every_feature[name] for name in (key, "action")}
        try:
            built.specs()
        except SpecError:
            continue
        read += 1
        assert built.run(built.make())["action"].shape == (3, 4, 3)
    assert read


@of(HEADS, NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_padded_actions_have_no_influence(built: Built, dtype: torch.dtype) -> None:
    untouched = built.make().to(dtype)
    randomise(untouched)
    features, batch = built.features(dtype=dtype), built.world.batch()
    is_pad = built.world.is_pad(batch)
    assert is_pad.any()
    results = []
    for actions in (
        batch["action"],
        torch.where(is_pad, 1e4, batch["action"]),
        torch.where(is_pad, torch.nan, batch["action"]),
        batch["action"] + 1.0,
    ):
        torch.manual_seed(5)
        part = copy.deepcopy(untouched)  # a head may count its steps
        loss = part.loss(features, actions, is_pad)["loss"]
        loss.backward()
        results.append((loss, [p.grad.clone() for p in part.parameters()]))
    for loss, grads in results[1:3]:
        assert torch.equal(loss, results[0][0])
        assert all(torch.equal(a, b) for a, b in zip(grads, results[0][1], strict=True))
    assert not torch.equal(results[3][0], results[0][0])


@of(HEADS, NETWORKS)
def test_a_batch_of_padding_costs_nothing(built: Built) -> None:
    part = built.make()
    randomise(part)
    batch = built.world.batch()
    everything = torch.ones_like(batch["action"], dtype=torch.bool)
    loss = part.loss(built.features(), batch["action"], everything)["loss"]
    loss.backward()
    assert loss == 0.0
    assert all((p.grad == 0.0).all() for p in part.parameters())


@of(HEADS, NETWORKS)
def test_masked_tokens_have_no_influence(built: Built) -> None:
    untouched = built.make()
    randomise(untouched)
    batch, features = built.world.batch(), built.features()
    if all(feature.mask is None for feature in features.values()):
        pytest.skip("nothing that it reads has a mask")
    variants = []
    for change in (
        lambda values: values,
        lambda values: torch.full_like(values, 50.0),
        lambda values: values.flip(-1),
    ):
        torch.manual_seed(5)
        hides = len(variants) < 2
        changed = {key: masked_where(feature, change, hides) for key, feature in features.items()}
        part = copy.deepcopy(untouched)
        loss = part.loss(changed, batch["action"], built.world.is_pad(batch))["loss"]
        variants.append((loss, part.sample(changed, torch.Generator().manual_seed(0))))
    assert torch.equal(variants[0][0], variants[1][0])
    assert torch.equal(variants[0][1], variants[1][1])
    assert not (torch.equal(variants[0][0], variants[2][0]) and torch.equal(variants[0][1], variants[2][1]))


def masked_where(feature: Feature, change: Any, hidden: bool) -> Feature:
    """The feature with the values of its hidden tokens, or of its valid ones, changed."""
    if feature.mask is None:
        return feature
    mask = feature.mask
    while mask.ndim < feature.values.ndim - 1:
        mask = mask[:, None]
    values = torch.where(mask[..., None] ^ hidden, change(feature.values), feature.values)
    return dataclasses.replace(feature, values=values)


@of(HEADS, NETWORKS)
def test_a_sample_without_a_valid_token_is_finite(built: Built) -> None:
    part = built.make()
    randomise(part)
    batch, features = built.world.batch(), built.features()
    some = (torch.arange(3) > 0)[:, None]
    features = {
        key: feature if feature.mask is None else dataclasses.replace(feature, mask=feature.mask & some)
        for key, feature in features.items()
    }
    loss = part.loss(features, batch["action"], built.world.is_pad(batch))["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in part.parameters() if p.grad is not None)


@of(HEADS, NETWORKS)
def test_samples_are_reproducible_by_generator(built: Built) -> None:
    part, features = built.make(), built.features()
    randomise(part)
    part.eval()
    first = part.sample(features, torch.Generator().manual_seed(1))
    torch.manual_seed(99)
    assert torch.equal(first, part.sample(features, torch.Generator().manual_seed(1)))
    assert part.sample(features).shape == first.shape


@of(HEADS, NETWORKS)
def test_one_batch_is_learned_by_heart(built: Built) -> None:
    part, features, batch = built.make(), built.features(), built.world.batch()
    is_pad = torch.zeros_like(batch["action"], dtype=torch.bool)
    optimizer = torch.optim.Adam(part.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    losses = []
    for _ in range(400):
        loss = part.loss(features, batch["action"], is_pad)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) / 20 < 0.1 * losses[0]
    with torch.no_grad():
        error = (
            (part.eval().sample(features, torch.Generator().manual_seed(0)) - batch["action"]).abs().mean()
        )
    assert error < 0.2  # about 1 before


# --- transforms --------------------------------------------------------------------------------------------------


def published(built: Built) -> dict[str, Spec]:
    """Specs of what a transform gives, for normalised vectors where it takes no others."""
    try:
        return built.specs()
    except SpecError as error:
        if error.trait != "range":
            raise
    vectors = (Kind.STATE, Kind.ACTION)
    normal = {
        k: dataclasses.replace(s, range=Range.NORMALISED)
        for k, s in built.inputs.items()
        if s.kind in vectors
    }
    inputs = {**built.inputs, **normal}
    return built.cls.specs(built.config, inputs, built.facts)  # type: ignore[no-any-return]


@of(TRANSFORMS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_transform_publishes_real_shapes(built: Built, device: str, training: bool) -> None:
    part = built.make(device).train(training)
    specs, given = published(built), built.world.batch()
    outputs = built.run(part, 3, device)
    assert {k for k, spec in specs.items() if spec.kind is not Kind.TEXT} <= outputs.keys()
    assert not (built.inputs.keys() - specs.keys()) & outputs.keys()
    assert all(key.startswith("action_") for key in outputs.keys() - specs.keys() - given.keys())
    for key, value in outputs.items():
        if key in specs:
            assert tuple(value.shape) == (3, *specs[key].dims[1:]), key
            assert value.device.type == device


@of(TRANSFORMS)
def test_transform_is_deterministic_in_eval_and_seeded_in_train(built: Built) -> None:
    part = built.make()
    assert_equal(built.run(part.eval(), seed=1), built.run(part.eval(), seed=2))
    assert_equal(built.run(part.train(), seed=1), built.run(part.train(), seed=1))


@of(TRANSFORMS)
def test_transform_treats_all_steps_of_a_camera_alike(built: Built) -> None:
    part, batch = built.make().train(), built.world.batch()
    for key, value in batch.items():
        if key.startswith("observation.images."):
            batch[key] = value[:, :1].expand(-1, value.shape[1], -1, -1, -1)
    for key, value in part(batch).items():
        if key.startswith("observation.images."):
            assert torch.equal(value[:, 0], value[:, 1])


@of(TRANSFORMS)
def test_transform_passes_over_absent_keys_and_carries_others(built: Built) -> None:
    part = built.make()
    assert part({}) == {}
    extra = object()
    assert part({"meta": extra})["meta"] is extra
    state = {"observation.state": built.world.batch()["observation.state"]}
    expected = {key for key in published(built) if key.startswith("observation.") and "images" not in key}
    assert {key for key in part(state) if not key.startswith("action_")} == expected


@of(TRANSFORMS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_transform_is_undone_for_actions(built: Built, training: bool) -> None:
    part, batch = built.make().train(training), built.world.batch()
    back = part.inverse(part(batch))
    torch.testing.assert_close(back["action"], batch["action"], atol=1e-5, rtol=1e-5)
    if not training:  # the noise of training is not undone
        torch.testing.assert_close(
            back["observation.state"], batch["observation.state"], atol=1e-5, rtol=1e-5
        )
    part.eval()
    deployed = part({k: v for k, v in batch.items() if not k.startswith("action")})
    back = part.inverse({**deployed, "action": part(batch)["action"]})
    torch.testing.assert_close(back["action"], batch["action"], atol=1e-5, rtol=1e-5)


@of(TRANSFORMS)
def test_transform_names_only_keys_that_there_are(built: Built) -> None:
    for keys in (built.cls.needs(built.config, built.inputs), built.cls.measures(built.config, built.inputs)):
        assert {*keys} <= built.inputs.keys()


@of(TRANSFORMS)
def test_transform_does_not_follow_the_models_dtype(built: Built) -> None:
    part = built.make().eval()
    expected = built.run(part)
    assert_equal(expected, built.run(part.to(torch.bfloat16)))


# --- collators ---------------------------------------------------------------------------------------------------


def samples_of(built: Built) -> list[dict[str, Any]]:
    batch = built.world.batch()
    keys = [key for key in batch if not key.startswith("task.")]
    return [{key: batch[key][index] for key in keys} for index in range(3)]


@of(COLLATORS)
def test_collator_publishes_real_shapes(built: Built) -> None:
    inputs = {key: spec for key, spec in built.inputs.items() if key != "task.input_ids"}
    specs = built.cls.specs(built.config, inputs, built.facts)
    assert inputs.items() <= specs.items()
    batch = built.make()(samples_of(built))
    for key, spec in specs.items():
        shape = (len(batch[key]),) if isinstance(batch[key], list) else tuple(batch[key].shape)
        assert shape == (3, *spec.dims[1:]), key
    expected = built.world.batch()
    for key in inputs:
        assert (
            torch.equal(batch[key], expected[key])
            if isinstance(batch[key], Tensor)
            else batch[key] == expected[key]
        )


@of(COLLATORS)
def test_collator_is_rebuilt_from_its_assets(built: Built, tmp_path: Path) -> None:
    part, samples = built.make(), samples_of(built)
    expected = part(samples)
    assets = tmp_path / "assets"
    assets.mkdir()
    part.save_assets(assets)
    for path in tmp_path.iterdir():
        if path != assets:
            shutil.rmtree(path)
    assert_same_batch(expected, built.cls(built.config, built.facts, assets)(samples))
    assert_same_batch(expected, pickle.loads(pickle.dumps(part))(samples))
