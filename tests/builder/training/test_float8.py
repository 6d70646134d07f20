"""Wide layers in float8, emulated on a CPU and real on a GPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModel

from policysmith.builder import Builder
from policysmith.builder.training.distributed import accelerator
from policysmith.builder.training.distributed.accelerator import require_float8
from policysmith.builder.training.speed import float8
from policysmith.builder.training.speed.bf16_weights import BF16Copies
from policysmith.builder.training.speed.float8 import describe, to_float8, wide_layers, without_float8
from policysmith.schemas.errors import RecipeError, TrainingError

SCALES: list[Literal["tensorwise", "rowwise"]] = ["tensorwise", "rowwise"]


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round to float8 on any device, and treat small layers as large."""
    config = pytest.importorskip("torchao.float8").Float8LinearConfig
    named = config.from_recipe_name
    monkeypatch.setattr(config, "from_recipe_name", lambda name: replace(named(name), emulate=True))
    monkeypatch.setattr(accelerator, "require_float8", lambda how, on_gpu: None)
    monkeypatch.setattr(float8, "LARGE", dict.fromkeys(SCALES, 8))


@pytest.fixture
def cast() -> Iterator[None]:
    """Turn autocast on, as in a run."""
    with torch.autocast("cpu", torch.bfloat16):
        yield


class Layer(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm, self.first, self.last = (
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.last(self.first(self.norm(x)).relu())
        return y


class Adapted(nn.Module):
    """A frozen layer, an adapter, a layer of another class, odd sizes, and a shared weight."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.rest = nn.Linear(32, 32).requires_grad_(False)
        self.down, self.up = nn.Linear(32, 4), nn.Linear(4, 32)
        self.other, self.odd = nn.modules.linear.NonDynamicallyQuantizableLinear(32, 32), nn.Linear(40, 32)
        self.tied = nn.Linear(32, 48)
        self.tied.weight = embedding.weight


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(48, 32)
        self.layers = nn.ModuleList([Layer(), Layer(), Adapted(self.embed)])
        self.head = nn.Linear(32, 32)


def linear(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def small(
    how: Literal["tensorwise", "rowwise"] = "tensorwise", depth: int = 2, undo: ExitStack | None = None
) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(*(Layer() for _ in range(depth)))
    to_float8(wide_layers(model, how), how, undo or ExitStack())
    return model


@pytest.mark.usefixtures("emulated", "cast")
def test_wide_layers_that_train_inside_repeated_layers_are_found() -> None:
    policy = Policy()
    names = {module: name for name, module in policy.named_modules()}
    found = wide_layers(policy, "tensorwise")
    assert [names[layer] for layer in found] == [
        f"layers.{i}.{name}" for i in range(2) for name in ("first", "last")
    ]
    assert describe(found, "rowwise") == (
        "4 layers compute in float8, rowwise: 2 of 32 to 64 features from 13 rows on, "
        "2 of 64 to 32 features from 13 rows on"
    )


def test_no_number_of_rows_makes_the_layers_of_a_vit_b_large() -> None:
    def found(width: int, wider: int, how: Literal["tensorwise", "rowwise"]) -> list[nn.Linear]:
        layer = nn.Module()
        with torch.device("meta"):
            layer.fc = nn.Linear(width, wider)
        return wide_layers(nn.Sequential(layer), how)

    assert found(768, 3072, "tensorwise") == []
    assert "none that trains is wide enough" in describe([], "tensorwise")
    assert found(2048, 2048, "rowwise") == []
    assert "1 of 2048 to 2048 features from 7433 rows on" in describe(
        found(2048, 2048, "tensorwise"), "tensorwise"
    )
    assert "1 of 2048 to 16384 features from 2780 rows on" in describe(
        found(2048, 16384, "rowwise"), "rowwise"
    )


@pytest.mark.usefixtures("emulated", "cast")
@pytest.mark.parametrize("how", SCALES)
def test_a_product_is_rounded_to_float8_where_it_is_large(how: Literal["tensorwise", "rowwise"]) -> None:
    layer = small(how)[0].first
    twin, seen = layer.forward.__self__, list[int]()
    rounded = twin.forward

    def watched(x: Tensor) -> Tensor:
        seen.append(len(x))
        y: Tensor = rounded(x)
        return y

    twin.forward = watched
    for rows, large in ((12, False), (16, True), (21, True)):  # 21 is no multiple of 16
        x = torch.randn(rows, 32, requires_grad=True)
        ours = layer(x)
        mine = torch.autograd.grad(ours.square().sum(), [x, layer.weight, layer.bias])
        with without_float8([layer]):
            exact = layer(x)
            theirs = torch.autograd.grad(exact.square().sum(), [x, layer.weight, layer.bias])
        assert ours.shape == exact.shape
        assert torch.equal(ours, exact) != large
        assert float(((ours - exact).norm() / exact.norm()).detach()) < 0.05
        for our, their in zip(mine, theirs, strict=True):
            assert float((our - their).norm() / their.norm()) < 0.1
    batched = torch.randn(3, 7, 32)
    torch.testing.assert_close(layer(batched), layer(batched.flatten(0, 1)).unflatten(0, (3, 7)))
    assert seen == [16, 32, 32, 32], "the hardware wants multiples of 16"


@pytest.mark.usefixtures("emulated", "cast")
def test_layers_stay_themselves_and_compute_as_ever_afterwards() -> None:
    undo = ExitStack()
    model = small(undo=undo)
    modules, state = dict(model.named_modules()), dict(model.named_parameters())
    x = torch.randn(4, 8, 32)
    rounded = model(x)
    assert dict(model.named_modules()) == modules
    assert all(type(layer) is nn.Linear for layer in linear(model))
    assert {name: id(p) for name, p in model.named_parameters()} == {n: id(p) for n, p in state.items()}
    undo.close()
    assert not any("forward" in vars(m) for m in linear(model))
    plain = nn.Sequential(Layer(), Layer())
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(x), plain(x))
    assert not torch.equal(model(x), rounded)


@pytest.mark.usefixtures("emulated", "cast")
def test_copies_in_bf16_are_what_is_rounded() -> None:
    model = small()
    weight, x = model[0].first.weight, torch.randn(2, 16, 32)
    shadows = BF16Copies(model, linear(model), trained=True)
    shadows.install()
    copy = shadows.copies[weight]
    with torch.no_grad():
        copy.zero_()
    assert torch.equal(model[0].first(x), model[0].first.bias.float().expand(2, 16, 64))
    model[0].first(x).sum().backward()
    assert weight.grad is None
    assert copy.grad is not None
    assert copy.grad.dtype == torch.bfloat16
    shadows.remove()
    assert model[0].first.weight is weight


@pytest.mark.usefixtures("emulated", "cast")
def test_where_autocast_is_off_nothing_is_rounded() -> None:
    model, x = small(), torch.randn(2, 16, 32)
    with torch.autocast("cpu", enabled=False):
        ours = model[0].first(input=x)
        with without_float8([model[0].first]):
            assert torch.equal(ours, model[0].first(x))


@pytest.mark.usefixtures("emulated", "cast")
def test_like_layers_are_compiled_once() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    model = small(depth=4)
    x = torch.randn(2, 16, 32, requires_grad=True)
    expected = model(x)
    torch._dynamo.reset()
    for block in model:
        block._compiled_call_impl = torch.compile(block._call_impl, backend=counter, fullgraph=True)
    torch.testing.assert_close(model(x), expected)
    assert counter.frame_count == 1


@pytest.fixture
def recipe(tiny: dict[str, Any]) -> dict[str, Any]:
    tiny["policy"]["backbones"]["vision"] |= {"width": 64, "heads": 4}
    tiny["training"] |= {"steps": 60, "batch_size": 16, "precision": "bf16", "optimizer": {"lr": 1e-3}}
    return tiny


def logged(run: Path, value: str) -> list[Any]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line[value] for line in lines if value in line]


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("how", "accumulate"), [("tensorwise", 1), ("rowwise", 2)])
def test_a_run_learns_what_it_does_in_bf16(
    how: str, accumulate: int, recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe["training"] |= {"accumulate": accumulate, "steps": 60 // accumulate, "ema": 0.9, "save_every": 30}
    recipe["data"]["validation"] = 0.25
    for name in ("off", how):
        builder = Builder.from_recipe(recipe).override({"training.float8": name})
        result = builder.train(output=tmp_path / name, device="cpu")
    notes = logged(tmp_path / how, "note")
    assert sum("layers compute in float8" in note for note in notes) == 1
    assert not any("float8" in note for note in logged(tmp_path / "off", "note"))
    counted = [[note for note in logged(tmp_path / run, "note") if "GFLOP" in note] for run in ("off", how)]
    assert counted[0] == counted[1]
    ours, theirs = (torch.tensor(logged(tmp_path / run, "loss")) for run in (how, "off"))
    assert not torch.equal(ours, theirs)
    torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.01)
    assert abs(float(ours[-10:].mean() / theirs[-10:].mean()) - 1.0) < 0.03
    ours, theirs = (torch.tensor(logged(tmp_path / run, "validation/loss")) for run in (how, "off"))
    torch.testing.assert_close(ours, theirs, rtol=0.03, atol=0.0)
    assert not any("forward" in vars(m) for m in linear(result.policy))
    saved, plain = (AutoModel.from_pretrained(tmp_path / run / "policy") for run in (how, "off"))
    assert [(n, p.dtype, p.shape) for n, p in saved.named_parameters()] == [
        (n, p.dtype, p.shape) for n, p in plain.named_parameters()
    ]
    for name, weight in result.policy.state_dict().items():
        assert torch.equal(saved.state_dict()[name], weight), name


@pytest.mark.usefixtures("emulated")
def test_operations_are_those_of_bf16_where_a_context_needs_no_gradient(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    network = {"type": "groot_dit", "width": 64, "depth": 2, "heads": 4, "queries": 4, "hidden": 32}
    recipe["policy"] |= {
        "head": {"type": "flow_matching", "reads": ["vision.tokens", "proprio.pooled"], "network": network},
        "freeze": ["backbones.vision.*"],
    }
    recipe["training"] |= {"steps": 1, "cache": "off"}
    counted = []
    for how in ("off", "tensorwise"):
        builder = Builder.from_recipe(recipe).override({"training.float8": how})
        builder.train(output=tmp_path / how, device="cpu")
        counted.append([note for note in logged(tmp_path / how, "note") if "GFLOP" in note])
    assert any("layers compute in float8" in note for note in logged(tmp_path / how, "note"))
    assert counted[0] == counted[1]


@pytest.mark.usefixtures("emulated")
def test_a_run_goes_on_from_its_checkpoint_with_and_without(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["training"] |= {"steps": 6, "save_every": 3, "keep": 5, "float8": "tensorwise"}
    builder = Builder.from_recipe(recipe)
    whole = builder.train(output=tmp_path / "run", device="cpu")
    shutil.rmtree(whole.checkpoint)
    again = builder.train(output=tmp_path / "run", device="cpu", resume=True)
    for name, weight in whole.policy.state_dict().items():
        assert torch.equal(again.policy.state_dict()[name], weight), name
    shutil.rmtree(again.checkpoint)
    plain = builder.override({"training.float8": "off"})
    assert plain.train(output=tmp_path / "run", device="cpu", resume=True).steps == 6


@pytest.mark.usefixtures("emulated")
def test_validation_is_of_the_policy_as_it_will_run(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[bool, int] = {True: 0, False: 0}
    good = float8._product

    def watched(twin: Any, x: Tensor) -> Tensor:
        seen[torch.is_grad_enabled()] += 1
        return good(twin, x)

    monkeypatch.setattr(float8, "_product", watched)
    recipe["data"]["validation"] = 0.25
    recipe["training"] |= {"steps": 2, "float8": "rowwise"}
    Builder.from_recipe(recipe).train(output=tmp_path / "run", device="cpu")
    assert logged(tmp_path / "run", "validation/loss")
    assert seen[True] > 0
    assert seen[False] == 0


@pytest.mark.usefixtures("emulated")
def test_a_policy_is_itself_again_after_an_error(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from policysmith.builder.training import loop

    seen: list[nn.Module] = []

    def failing(run: Any) -> None:
        seen.append(run.policy)
        assert any("forward" in vars(m) for m in linear(run.policy))
        raise RuntimeError("stop")

    monkeypatch.setattr(loop._Run, "take_step", failing)
    recipe["training"]["float8"] = "tensorwise"
    with pytest.raises(RuntimeError, match="stop"):
        Builder.from_recipe(recipe).train(output=tmp_path / "run", device="cpu")
    assert not any("forward" in vars(m) for m in linear(seen[0]))
    assert all(p.dtype == torch.float32 for p in seen[0].parameters())


@pytest.mark.usefixtures("emulated", "cast")
def test_shards_are_what_is_rounded(tmp_path: Path) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    from policysmith.builder.training.distributed.sharding import shard

    with ExitStack() as undo:
        plain, model = small(), small(undo=undo)
    x = torch.randn(2, 16, 32)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        shard(model, [*model], init_device_mesh("cpu", (1,)), bf16=False)
        assert isinstance(model[0], FSDPModule)
        wide = wide_layers(model, "tensorwise")
        assert len(wide) == 4
        to_float8(wide, "tensorwise", ExitStack())
        ours, theirs = model(x), plain(x)
        torch.testing.assert_close(ours, theirs)
        ours.square().sum().backward()
        theirs.square().sum().backward()
        for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad.full_tensor(), other.grad)
    finally:
        distributed.destroy_process_group()


def test_what_cannot_compute_in_float8_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "find_spec", lambda name: None)
    with pytest.raises(
        TrainingError, match=r"`training\.float8: rowwise` needs .*pip install policysmith\[float8\]"
    ):
        require_float8("rowwise", on_gpu=True)
    monkeypatch.setattr(accelerator, "find_spec", lambda name: name)
    with pytest.raises(
        TrainingError, match=r"needs a GPU, and this run is on a CPU; set `training\.float8: off`"
    ):
        require_float8("tensorwise", on_gpu=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(TrainingError, match=r"compute capability 8\.9 or more, and this A100 has less"):
        require_float8("tensorwise", on_gpu=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    require_float8("tensorwise", on_gpu=True)


def test_a_run_on_a_cpu_is_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["training"]["float8"] = "tensorwise"
    with pytest.raises(TrainingError, match=r"`training\.float8: tensorwise` needs"):
        Builder.from_recipe(recipe).train(output=tmp_path / "run", device="cpu")


@pytest.mark.parametrize(("key", "value"), [("precision", "fp32"), ("compile", "off")])
def test_options_that_exclude_it_are_named(key: str, value: str, recipe: dict[str, Any]) -> None:
    recipe["training"] |= {key: value, "float8": "rowwise"}
    with pytest.raises(RecipeError, match=f"`training.float8` .* `training.{key}` is {value}"):
        Builder.from_recipe(recipe).build()


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0), reason="needs an H100"
)
@pytest.mark.parametrize("how", SCALES)
def test_a_gpu_computes_in_float8(
    how: Literal["tensorwise", "rowwise"],
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torchao")
    from torch.profiler import ProfilerActivity, profile

    from policysmith.builder.training import loop
    from policysmith.builder.training.speed.step_graph import Settings, StepGraph

    monkeypatch.setattr(float8, "LARGE", dict.fromkeys(SCALES, 100))
    monkeypatch.setattr(
        loop, "StepGraph", partial(StepGraph, settings=Settings(busy=0.0))
    )  # tries in any case
    tiny["policy"]["backbones"]["vision"] |= {"width": 512, "depth": 2, "heads": 8}
    tiny["training"] |= {"steps": 60, "batch_size": 64, "optimizer": {"lr": 1e-4}, "save_every": 30}
    products: dict[str, int] = {}
    good = loop._Run.take_step

    def watched(run: Any) -> None:
        if run.step != 5:  # compiled, and not replayed yet
            return good(run)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            good(run)
        products[run.section.float8] = sum("_scaled_mm" in event.name for event in seen.events())

    monkeypatch.setattr(loop._Run, "take_step", watched)
    for name in ("off", how):
        builder = Builder.from_recipe(tiny).override({"training.float8": name})
        result = builder.train(output=tmp_path / name, device="cuda")
    notes = "\n".join(logged(tmp_path / how, "note"))
    assert "12 layers compute in float8" in notes
    assert products["off"] == 0
    assert products[how] >= 3 * 12
    assert "replayed as a CUDA graph" in notes or "ms with it" in notes
    ours, theirs = (torch.tensor(logged(tmp_path / run, "loss")) for run in (how, "off"))
    torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.01)
    assert abs(float(ours[-20:].mean() / theirs[-20:].mean()) - 1.0) < 0.05
    saved = AutoModel.from_pretrained(result.checkpoint).state_dict()
    assert all(torch.equal(saved[name], weight.cpu()) for name, weight in result.policy.state_dict().items())
