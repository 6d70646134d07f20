"""Adapters against peft's own model, and against the formula."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from policysmith.components.backbones.mlp import MlpBackbone
from policysmith.components.backbones.timm import Timm
from policysmith.components.backbones.vit import Vit
from policysmith.components.pretrained import lora
from policysmith.schemas.errors import SpecError, WeightsError
from policysmith.schemas.part import LoraSection
from policysmith.schemas.specs import Kind, Spec

CAMERA = {"observation.images.a": Spec(Kind.IMAGE, ("B", 1, 3, 32, 32))}
STATE = {"observation.state": Spec(Kind.STATE, ("B", 1, 5))}
IMAGES = {"observation.images.a": torch.randn(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


def vit(**options: Any) -> Vit:
    torch.manual_seed(0)
    config = Vit.Config(type="vit", patch_size=16, width=16, depth=2, heads=2, **options)
    return Vit(config, CAMERA, {}).eval()


def mlp(**options: Any) -> MlpBackbone:
    torch.manual_seed(0)
    return MlpBackbone(MlpBackbone.Config(type="mlp", width=8, hidden=[6], **options), STATE, {}).eval()


def adapted(part: nn.Module, **options: Any) -> Any:
    torch.manual_seed(1)
    lora.adapt(part, LoraSection(**options))
    return part


def train(part: nn.Module, size: float = 0.3) -> None:
    """Move what trains, as training does."""
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in part.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=random))


def tokens(part: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        values: torch.Tensor = part(IMAGES, ("tokens",))["tokens"].values
    return values


@pytest.mark.parametrize("kind", [nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_a_layer_and_its_adapter_follow_the_formula(kind: type[nn.Module]) -> None:
    sizes = (5, 6) if kind in (nn.Linear, nn.Embedding) else (5, 6, 3)
    given = {
        nn.Linear: torch.randn(4, 5),
        nn.Embedding: torch.tensor([0, 3, 4]),
        nn.Conv1d: torch.randn(2, 5, 7),
        nn.Conv2d: torch.randn(2, 5, 7, 7),
        nn.Conv3d: torch.randn(2, 5, 4, 4, 4),
    }[kind]
    holder = nn.ModuleDict({"layer": kind(*sizes)}).double()
    given = given.double() if given.is_floating_point() else given
    plain, before = holder["layer"], holder["layer"](given)
    layer = adapted(holder, rank=2, alpha=6.0, targets=["layer"])["layer"]
    assert torch.equal(layer(given), before)
    train(holder)
    if kind is nn.Embedding:
        down, up = layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
        expected = before + 6.0 / 2 * down.T[given] @ up.T
    else:
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        change = torch.einsum("or...,ri...->oi...", up, down)
        twin = copy.deepcopy(plain)
        twin.weight.data += 6.0 / 2 * change
        expected = twin(given)
    torch.testing.assert_close(layer(given), expected)
    assert (layer(given) - before).abs().max() > 1e-2
    lora.merge(holder)
    assert holder["layer"] is plain
    torch.testing.assert_close(holder["layer"](given), expected)


def test_it_is_what_peft_makes_of_the_model() -> None:
    targets = ["q_proj", "v_proj"]
    ours = adapted(vit(), rank=4, alpha=8.0, targets=[f"*.{name}" for name in targets])
    model = vit().model
    torch.manual_seed(1)
    theirs = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets)).eval()
    train(ours)
    train(theirs)
    state = {key.removeprefix("model."): value for key, value in ours.state_dict().items()}
    expected = {key.removeprefix("base_model.model."): value for key, value in theirs.state_dict().items()}
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())
    trained = {name.removeprefix("model.") for name, p in ours.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 2
    assert trained == {
        name.removeprefix("base_model.model.") for name, p in theirs.named_parameters() if p.requires_grad
    }
    images = IMAGES["observation.images.a"][:, 0]
    with torch.no_grad():
        assert torch.equal(tokens(ours), theirs(pixel_values=images).last_hidden_state[:, 1:])
    lora.merge(ours)
    merged = theirs.merge_and_unload().state_dict()
    assert all(torch.equal(value, merged[key]) for key, value in ours.model.state_dict().items())


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 5e-6), (torch.float64, 1e-13)], ids=str)
def test_merged_weights_act_like_the_adapters(dtype: torch.dtype, error: float) -> None:
    part = adapted(vit().to(dtype), rank=4)
    untrained = tokens(part)
    assert torch.equal(untrained, tokens(vit().to(dtype)))
    train(part, 0.1)
    expected = tokens(part)
    lora.merge(part)
    assert lora.count_adapters(part) == 0
    assert part.state_dict().keys() == vit().state_dict().keys()
    assert (expected - untrained).abs().max() > 1e-2
    torch.testing.assert_close(tokens(part), expected, atol=error, rtol=0.0)


def test_adapters_that_are_not_finite_are_not_merged() -> None:
    part = adapted(mlp(), rank=2)
    part.layers[0].lora_B["default"].weight.data.fill_(float("nan"))
    with pytest.raises(WeightsError, match="adapter of `0` cannot be merged"):
        lora.merge(part)


def test_only_adapters_train_and_rest_can_be_said_again() -> None:
    part = adapted(vit(), rank=2)
    trains = [name for name, parameter in part.named_parameters() if parameter.requires_grad]
    assert len(trains) == 2 * lora.count_adapters(part) == 2 * 2 * 6
    assert all(".lora_" in name for name in trains)
    for parameter in part.parameters():
        parameter.requires_grad_(True)
    lora.freeze_all_but_adapters(part)
    assert [name for name, parameter in part.named_parameters() if parameter.requires_grad] == trains
    plain = vit()
    lora.freeze_all_but_adapters(plain)
    assert all(parameter.requires_grad for parameter in plain.parameters())


def test_the_same_seed_gives_the_same_adapters_and_meta_gives_the_same_names() -> None:
    one, two = adapted(vit(), rank=2), adapted(vit(), rank=2)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    with torch.device("meta"):
        empty = adapted(vit(), rank=2)
    assert all(value.is_meta for value in (*empty.parameters(), *empty.buffers()))
    assert empty.state_dict().keys() == one.state_dict().keys()
    whole = empty.to_empty(device="cpu")
    whole.load_state_dict(one.state_dict())
    assert torch.equal(tokens(whole), tokens(one))


def test_dropout_acts_on_adapters_only_while_training() -> None:
    part = adapted(vit(), rank=2, dropout=0.5)
    train(part)
    assert torch.equal(tokens(part), tokens(part))
    part.train()
    assert not torch.equal(tokens(part), tokens(part))


def test_weights_find_the_layers_as_they_were() -> None:
    part, plain = adapted(vit(), rank=2), vit()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(1.0)
    adapters = {key: value.clone() for key, value in part.state_dict().items() if ".lora_" in key}
    with lora.without_adapters(part):
        assert lora.count_adapters(part) == 0
        part.load_state_dict(plain.state_dict(), strict=True)
    assert lora.count_adapters(part) == 12
    held = part.state_dict()
    assert all(torch.equal(held[key], value) for key, value in adapters.items())
    for key, value in plain.state_dict().items():
        stem, _, last = key.rpartition(".")
        found = held[key] if key in held else held[f"{stem}.base_layer.{last}"]
        assert torch.equal(found, value)
    with pytest.raises(KeyError), lora.without_adapters(part):
        raise KeyError("nothing")
    assert lora.count_adapters(part) == 12


# --- which layers ------------------------------------------------------------------------------------------------


def test_linear_layers_are_adapted_by_default_and_others_by_name() -> None:
    resnet = Timm(Timm.Config(type="timm", name="test_resnet"), CAMERA, {})
    with pytest.raises(SpecError, match="no linear layer") as caught:
        adapted(resnet)
    assert caught.value.field == "lora"
    assert "`model.conv1.0`" in caught.value.help
    part = adapted(resnet, rank=2, targets=["model.layer1.*.conv1", "*.conv2"])
    names = {name for name, module in part.named_modules() if isinstance(module, LoraLayer)}
    assert {name.rpartition(".")[2] for name in names} == {"conv1", "conv2"}
    assert {name for name in names if name.endswith("conv1")} == {
        name for name in names if name.startswith("model.layer1.") and name.endswith("conv1")
    }


def test_a_pattern_that_matches_nothing_is_told_with_names_that_there_are() -> None:
    with pytest.raises(SpecError, match=r"matches `\*\.query`") as caught:
        adapted(vit(), targets=["*.q_proj", "*.query"])
    assert caught.value.field == "lora.targets.1"
    assert "`model.layers.0.attention.q_proj`" in caught.value.help


def test_a_pattern_that_matches_no_layer_but_what_holds_some_matches_nothing() -> None:
    with pytest.raises(SpecError):
        adapted(vit(), targets=["model.layers.0"])


def test_grouped_convolutions_are_left_out() -> None:
    part = Timm(Timm.Config(type="timm", name="test_efficientnet"), CAMERA, {})
    assert any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in part.modules())
    with pytest.raises(SpecError, match=r"matches `\*\.conv_dw`"):
        adapted(part, rank=2, targets=["*.conv_dw"])


def test_layers_that_are_read_but_not_called_are_left_out() -> None:
    """The attention of torch reads the weight of `out_proj`; a masked language model ties its head to its embedding."""
    attention = nn.ModuleDict({"mix": nn.MultiheadAttention(8, 2), "out": nn.Linear(8, 8)})
    assert list(lora.adaptable(attention)) == ["out"]
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertForMaskedLM(BertConfig(**sizes, intermediate_size=12))
    assert bert.cls.predictions.decoder.weight is bert.bert.embeddings.word_embeddings.weight
    names = list(lora.adaptable(bert))
    assert "bert.embeddings.word_embeddings" not in names
    assert "cls.predictions.decoder" not in names
    assert "bert.embeddings.position_embeddings" in names


def test_a_part_without_layers_says_so() -> None:
    with pytest.raises(SpecError) as caught:
        adapted(nn.ModuleDict({"norm": nn.LayerNorm(3)}))
    assert caught.value.help == "leave `lora` out"
