"""Contract of all parts that compute something."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from policysmith.components.base import Feature

from .built import (
    MODULES,
    PARTS,
    WEIGHTED,
    Built,
    assert_equal,
    assert_same_batch,
    every,
    randomize,
    replace_rows,
    rows,
    samples_of,
    skip_without_weights,
)


@every(WEIGHTED)
@pytest.mark.parametrize(
    ("device", "dtype", "size"), [("meta", torch.float32, 3), ("cpu", torch.bfloat16, 1)], ids=["meta", "cpu"]
)
def test_published_specs_are_the_real_shapes(
    built: Built, device: str, dtype: torch.dtype, size: int
) -> None:
    part = built.make(device).to(dtype)
    with torch.device(device):
        outputs = built.run(part, size, device)
    for key, spec in built.specs().items():
        assert tuple(outputs[key].shape) == tuple({"B": size}.get(dim, dim) for dim in spec.dims), key
        assert device == "meta" or outputs[key].isfinite().all(), key


@every(WEIGHTED)
def test_gradients_reach_every_parameter(built: Built) -> None:
    part = built.make()
    skip_without_weights(part)
    randomize(part)
    for _ in range(2 if built.is_head else 1):  # a head may train its weights in turns
        outputs = built.run(part)
        total = outputs["loss"] if built.is_head else sum((v**2).mean() for v in outputs.values())
        total.backward()  # type: ignore[union-attr]
    dead = [name for name, p in part.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    # the key's bias adds the same to every score, so that softmax does not see it, and the first self-attention of a
    # DETR decoder mixes values that are all the same
    idle = re.compile(r"(.*\.)?(key|k_proj)\.bias|decoder\.layers\.0\.attention\..*")
    assert [name for name in dead if not idle.fullmatch(name)] == []


COMPILED: dict[type, str] = {}
"""First part that repeats each class of layers."""


@every(WEIGHTED)
def test_blocks_compile_each_as_one_graph(built: Built) -> None:
    part = built.make().eval()
    randomize(part)
    blocks, graphs = part.repeated_blocks(), []
    if not any(COMPILED.setdefault(type(block), built.name) == built.name for block in blocks):
        pytest.skip("the part repeats no layer that an earlier part does not repeat")
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
    randomize(first)
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
    randomize(part)
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
