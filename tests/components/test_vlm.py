"""Vision-language models: what they read against transformers' own forward, family by family."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, Qwen2VLImageProcessor

from policysmith.components.backbones.vlm import Vlm
from policysmith.components.pretrained import lora, models
from policysmith.schemas.errors import SpecError, WeightsError
from policysmith.schemas.part import LoraSection
from policysmith.schemas.specs import Kind, Spec

LENGTHS = (5, 3)
PER_FRAME = {"paligemma": 16, "smolvlm": 4, "internvl": 4, "qwen2_5_vl": 16, "qwen3_vl": 4, "florence2": 17}
FAMILIES = sorted(PER_FRAME)
GROWING = [family for family in FAMILIES if family != "florence2"]


def architecture(family: str) -> str:
    return f"policysmith/tiny-{family}"


def inputs(size: int = 32, length: int = 6, vocab: int | None = 500, steps: int = 1) -> dict[str, Spec]:
    return {
        "observation.images.front": Spec(Kind.IMAGE, ("B", steps, 3, size, size)),
        "observation.images.wrist": Spec(Kind.IMAGE, ("B", steps, 3, size, size)),
        "observation.state": Spec(Kind.STATE, ("B", steps, 5)),
        "task.input_ids": Spec(Kind.TOKEN_IDS, ("B", length), vocab=vocab),
    }


def observations(size: int = 32, length: int = 6, steps: int = 1) -> dict[str, Tensor]:
    return {
        "observation.images.front": torch.randn(2, steps, 3, size, size),
        "observation.images.wrist": torch.randn(2, steps, 3, size, size),
        "observation.state": torch.randn(2, steps, 5),
        "task.input_ids": torch.randint(3, 500, (2, length)),
        "task.attention_mask": (torch.arange(length) < torch.tensor(LENGTHS)[:, None]).long(),
    }


def save(family: str, directory: Path) -> Any:
    """Save a small checkpoint with weights far from their initial values, and return transformers' model."""
    path = Path(models.__file__).parent / "architectures" / f"policysmith--tiny-{family}.json"
    held = json.loads(path.read_text())
    model: Any = AutoModelForImageTextToText.from_config(
        CONFIG_MAPPING[held.pop("model_type")].from_dict(held)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return model.eval()


def build(given: dict[str, Spec] | None = None, **options: Any) -> Vlm:
    given = given or inputs()
    config = Vlm.Config(type="vlm", **options)
    facts = Vlm.facts(config)
    Vlm.specs(config, given, facts)
    part = Vlm(config, given, facts)
    part.load_pretrained()
    return part.eval()


def sequence(family: str, model: Any, batch: dict[str, Tensor], per_frame: int) -> dict[str, Any]:
    """[front | wrist | prompt] and, where the batch has one, a suffix, as transformers' own forward takes them."""
    frames = torch.stack([batch[f"observation.images.{key}"][:, 0] for key in ("front", "wrist")], 1)
    frame = [511] * per_frame
    options: dict[str, Any] = {"pixel_values": frames.flatten(0, 1)}
    if family.startswith("qwen"):
        frame = [509, *frame, 508]
        vision = model.config.vision_config
        sizes = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
        processor = Qwen2VLImageProcessor(do_resize=False, do_rescale=False, do_normalize=False, **sizes)
        packed = processor(images=list(frames.flatten(0, 1)), return_tensors="pt")
        options |= {"pixel_values": packed.pixel_values, "image_grid_thw": packed.image_grid_thw}
    suffix = batch.get("suffix", torch.zeros(2, 0, dtype=torch.long))
    ids = torch.cat([torch.tensor(2 * frame).expand(2, -1), batch["task.input_ids"], suffix], 1)
    shown = torch.ones(2, 2 * len(frame), dtype=torch.long)
    mask = torch.cat([shown, batch["task.attention_mask"], torch.ones_like(suffix)], 1)
    options |= {"input_ids": ids, "attention_mask": mask}
    if family.startswith("qwen"):
        options["mm_token_type_ids"] = (ids == 511).int()
    elif family == "florence2":
        options["decoder_input_ids"] = torch.ones(2, 1, dtype=torch.long)
    else:
        options["position_ids"] = mask.cumsum(1) - 1
    if family == "paligemma":
        written = torch.arange(ids.shape[1]) >= ids.shape[1] - suffix.shape[1]
        options["token_type_ids"] = written.long().expand_as(ids)
    if family == "smolvlm":
        options["pixel_values"] = frames
    return options


def reference(model: Any, family: str, batch: dict[str, Tensor], per_frame: int) -> dict[str, Any]:
    """Run transformers' model: valid tokens, last hidden states, inputs of each layer, and the cache."""
    text: Any = {
        "smolvlm": lambda: model.model.text_model,
        "florence2": lambda: model.model.language_model.encoder,
    }
    read: list[Tensor] = []
    for layer in text.get(family, lambda: model.model.language_model)().layers:
        layer.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    options = sequence(family, model, batch, per_frame)
    with torch.no_grad():
        out = model.model(use_cache=True, **options)
    last = out.encoder_last_hidden_state if family == "florence2" else out.last_hidden_state
    return {"valid": options["attention_mask"].bool(), "last": last, "read": read, "cache": out.cache}


def causal(family: str) -> dict[str, Any]:
    """Make SmolVLM read as transformers does, not as SmolVLA."""
    return {"attention": "causal"} if family == "smolvlm" else {}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [32, 64])
def test_it_reads_what_transformers_reads(family: str, size: int, tmp_path: Path) -> None:
    if size != 32 and family == "paligemma":
        pytest.skip("it sees images of one size")
    per_frame = PER_FRAME[family] * (size // 32) ** 2 - 3 * (size // 64) * (family == "florence2")
    model, batch = save(family, tmp_path), observations(size)
    expected = reference(model, family, batch, per_frame)
    part = build(inputs(size), pretrained=str(tmp_path), **causal(family))
    outputs = ["tokens", "layers", *(["key_values"] if family != "florence2" else [])]
    with torch.no_grad():
        found = part(batch, outputs)
    valid = expected["valid"]
    assert torch.equal(found["tokens"].mask, valid)
    close(found["tokens"].values[valid], expected["last"][valid])
    layers = [*expected["read"][1:], expected["last"]]
    assert len(layers) == found["layers"].values.shape[1]
    for index, hidden in enumerate(layers):
        close(found["layers"].values[:, index][valid], hidden[valid])
    if family != "florence2":
        for index, layer in enumerate(expected["cache"].layers):
            keys, values = found["key_values"].values[:, index].unbind(1)
            close(keys.transpose(1, 2)[valid], layer.keys.transpose(1, 2)[valid])
            close(values.transpose(1, 2)[valid], layer.values.transpose(1, 2)[valid])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_images_need_not_be_square(family: str, tmp_path: Path) -> None:
    model, batch = save(family, tmp_path), observations()
    for key in ("front", "wrist"):
        batch[f"observation.images.{key}"] = torch.randn(2, 1, 3, 32, 80)
    given = inputs()
    for key in ("front", "wrist"):
        given[f"observation.images.{key}"] = Spec(Kind.IMAGE, ("B", 1, 3, 32, 80))
    expected = reference(model, family, batch, PER_FRAME[family] * 5 // 2)
    found = build(given, pretrained=str(tmp_path))(batch, ("tokens",))["tokens"].values
    close(found[expected["valid"]], expected["last"][expected["valid"]])


@pytest.mark.parametrize("family", GROWING)
def test_the_decoder_writes_what_transformers_writes(family: str, tmp_path: Path) -> None:
    model, batch = save(family, tmp_path), observations()
    suffix = torch.randint(3, 500, (2, 4))
    with torch.no_grad():
        options = sequence(family, model, {**batch, "suffix": suffix}, PER_FRAME[family])
        expected = model(**options).logits[:, -4:]
        part = build(pretrained=str(tmp_path), decoder=True, **causal(family))
        past = part(batch, ("decoder",))["decoder"]
        decoder = past.decoder
        assert decoder is not None
        assert Vlm.specs(part.config, inputs(), Vlm.facts(part.config))["decoder"].vocab == 512
        hidden, longer = decoder.extend(past, decoder.embed(suffix))
        close(decoder.logits(hidden), expected)
        one = past
        for step in range(4):
            each, one = decoder.extend(one, decoder.embed(suffix[:, step : step + 1]))
            close(decoder.logits(each), expected[:, step : step + 1])
    close(one.values, longer.values)
    assert torch.equal(one.mask, longer.mask)
    assert torch.equal(one.end, longer.end)
    assert longer.values.shape[4] == past.values.shape[4] + 4


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_the_contract(family: str) -> None:
    options: dict[str, Any] = {"state": "token", "queries": 3, "soft_prompts": 2}
    options |= {"decoder": True} if family in GROWING else {}
    given, batch = inputs(steps=2), observations(steps=2)
    config = Vlm.Config(type="vlm", architecture=architecture(family), **options)
    facts = json.loads(json.dumps(Vlm.facts(config)))
    specs = Vlm.specs(config, given, facts)
    torch.manual_seed(0)
    part = Vlm(config, given, facts)
    outputs = part(batch, tuple(specs))
    sum((feature.values**2).mean() for feature in outputs.values()).backward()  # type: ignore[union-attr]
    dead = [name for name, p in part.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert [name for name in dead if not name.endswith(("k_proj.bias", "lm_head.weight"))] == []
    for device, dtype in (("cpu", torch.float32), ("cpu", torch.bfloat16), ("meta", torch.bfloat16)):
        with torch.device(device):
            moved = {key: value.to(device) for key, value in batch.items()}
            made = Vlm(config, given, facts).to(dtype)(moved, tuple(specs))
        for name, spec in specs.items():
            assert tuple(made[name].values.shape) == tuple({"B": 2}.get(dim, dim) for dim in spec.dims), name
            assert made[name].values.dtype == dtype, name


def test_low_precision_keeps_positions(tmp_path: Path) -> None:
    save("qwen2_5_vl", tmp_path)
    part, batch = build(pretrained=str(tmp_path)), observations()
    exact = part(batch, ("tokens",))["tokens"].values
    rough = part.to(torch.bfloat16)(batch, ("tokens",))["tokens"].values.float()
    assert (rough - exact).abs().mean() < 0.02 * exact.abs().mean()


# --- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_depth_cuts_the_rest_off(family: str, tmp_path: Path) -> None:
    save(family, tmp_path)
    whole, part, batch = (
        build(pretrained=str(tmp_path)),
        build(pretrained=str(tmp_path), depth=1),
        observations(),
    )
    assert size(part) < size(whole)
    expected = whole(batch, ("layers",))["layers"].values[:, 0]
    close(build(pretrained=str(tmp_path), layer=1)(batch, ("tokens",))["tokens"].values, expected)
    close(part._family.finish(part.model, expected), part(batch, ("tokens",))["tokens"].values)
    assert part(batch, ("layers",))["layers"].values.shape[1] == 1


def test_a_layer_that_nothing_needs_is_not_run() -> None:
    part, batch = build(architecture=architecture("paligemma"), layer=1), observations()
    run: list[int] = []
    for index, layer in enumerate(part._family.layers(part.model)):
        layer.register_forward_pre_hook(lambda *_, index=index: run.append(index))
    part(batch, ("tokens", "pooled"))
    assert run == [0]
    part(batch, ("key_values",))
    assert run == [0, 0, 1]


@pytest.mark.parametrize("family", ["paligemma", "qwen3_vl"])
def test_queries_see_everything_and_are_seen_by_none(family: str) -> None:
    part, batch = build(architecture=architecture(family), queries=3), observations()
    causal_part = build(architecture=architecture(family), queries=3, query_attention="causal")
    causal_part.load_state_dict(part.state_dict())
    before, ordered = part(batch, ("tokens", "queries")), causal_part(batch, ("queries",))
    assert before["queries"].values.shape[1] == 3
    assert before["queries"].mask is None
    with torch.no_grad():
        for each in (part, causal_part):
            each.queries[2] += 1.0
    after, reordered = part(batch, ("tokens", "queries")), causal_part(batch, ("queries",))
    assert torch.equal(before["tokens"].values, after["tokens"].values)
    assert not torch.isclose(before["queries"].values[:, 0], after["queries"].values[:, 0]).all()
    close(ordered["queries"].values[:, :2], reordered["queries"].values[:, :2])
    changed = part({**batch, "observation.images.front": -batch["observation.images.front"]}, ("queries",))
    assert not torch.isclose(changed["queries"].values, after["queries"].values).all(-1).any()


def test_the_state_sees_the_prompt_and_is_not_seen() -> None:
    part, batch = build(architecture=architecture("smolvlm"), state="token"), observations()
    changed = {**batch, "observation.state": batch["observation.state"] + 1.0}
    before, after = (part(each, ("tokens", "pooled")) for each in (batch, changed))
    assert torch.equal(before["tokens"].values[:, :-1], after["tokens"].values[:, :-1])
    assert not torch.isclose(before["tokens"].values[:, -1], after["tokens"].values[:, -1]).all()
    assert before["tokens"].mask[:, -1].all()
    close(before["pooled"].values, before["tokens"].values[:, -1])
    other = {**batch, "task.input_ids": batch["task.input_ids"].flip(1)}
    assert not torch.isclose(part(other, ("pooled",))["pooled"].values, before["pooled"].values).all()


def test_earlier_states_do_not_see_later_ones() -> None:
    given, batch = inputs(steps=2), observations(steps=2)
    part = build(given, architecture=architecture("smolvlm"), state="token")
    later = batch["observation.state"].clone()
    later[:, 1] += 1.0
    before, after = (
        part(each, ("tokens",))["tokens"].values for each in (batch, {**batch, "observation.state": later})
    )
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.isclose(before[:, -1], after[:, -1]).all()


def test_a_sequence_that_begins_with_what_is_hidden_is_finite() -> None:
    part, batch = build(architecture=architecture("internvl")), observations()
    batch["observation.images.front_is_pad"] = torch.tensor([[True], [True]])
    found = part(batch, ("tokens", "layers", "key_values"))
    sum(feature.values.sum() for feature in found.values()).backward()  # type: ignore[union-attr]
    assert all(feature.values.isfinite().all() for feature in found.values())
    assert all(p.grad.isfinite().all() for p in part.parameters() if p.grad is not None)


def test_soft_prompts_are_read_first() -> None:
    part, batch = build(architecture=architecture("internvl"), soft_prompts=2), observations()
    before = part(batch, ("tokens",))["tokens"]
    assert before.values.shape[1] == 2 + 8 + 6
    with torch.no_grad():
        part.soft_prompts[1] += 1.0
    after = part(batch, ("tokens",))["tokens"]
    close(before.values[:, 0], after.values[:, 0])
    assert not torch.isclose(before.values[:, 1:], after.values[:, 1:]).all(-1).any()


def test_pooling() -> None:
    batch = observations()
    tokens = build(architecture=architecture("paligemma"))
    mean = build(architecture=architecture("paligemma"), pooling="mean")
    mean.load_state_dict(tokens.state_dict())
    found = tokens(batch, ("tokens", "pooled"))
    values, mask = found["tokens"].values, found["tokens"].mask
    close(found["pooled"].values, torch.stack([values[0, 36], values[1, 34]]))
    close(
        mean(batch, ("pooled",))["pooled"].values,
        torch.stack([v[m].mean(0) for v, m in zip(values, mask, strict=True)]),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_padded_is_not_seen(family: str) -> None:
    part, batch = build(architecture=architecture(family), state="token"), observations()
    batch["observation.images.wrist_is_pad"] = torch.tensor([[False], [True]])
    outputs = ("tokens", *(["key_values"] if family in GROWING else []))
    before = part(batch, outputs)
    hidden = batch["observation.images.wrist_is_pad"][..., None, None, None]
    noise = {
        "observation.images.wrist": torch.where(hidden, 9.0, batch["observation.images.wrist"]),
        "task.input_ids": torch.where(batch["task.attention_mask"] == 1, batch["task.input_ids"], 7),
    }
    after = part({**batch, **noise}, outputs)
    mask = before["tokens"].mask
    close(before["tokens"].values[mask], after["tokens"].values[mask])
    assert (mask[0].sum() - mask[1].sum()).item() == 2 + part._family.frame_tokens((32, 32))
    if family not in GROWING:
        return
    everything = part({key: value for key, value in batch.items() if not key.endswith("is_pad")}, outputs)
    moved = everything["key_values"].end - before["key_values"].end
    assert moved[0] == 0
    assert moved[1] > 0


def test_another_base_of_the_rotary_embedding(tmp_path: Path) -> None:
    save("smolvlm", tmp_path)
    held = json.loads((tmp_path / "config.json").read_text())
    given, batch = build(pretrained=str(tmp_path), rope=10_000.0), observations()
    assert Vlm.specs(given.config, inputs(), Vlm.facts(given.config))["key_values"].rope == 10_000.0
    before = build(pretrained=str(tmp_path))(batch, ("key_values",))["key_values"].values
    held["text_config"]["rope_parameters"]["rope_theta"] = 10_000.0
    (tmp_path / "config.json").write_text(json.dumps(held))
    expected = build(pretrained=str(tmp_path))(batch, ("key_values",))["key_values"].values
    found = given(batch, ("key_values",))["key_values"].values
    close(found, expected)
    assert not torch.isclose(before, expected).all()


def test_embeddings_are_scaled_as_in_smolvla(tmp_path: Path) -> None:
    save("smolvlm", tmp_path)
    plain = build(pretrained=str(tmp_path), state="token")
    scaled = build(pretrained=str(tmp_path), state="token", embedding_scale="sqrt_width", decoder=True)
    scaled.state.load_state_dict(plain.state.state_dict())
    read: list[Tensor] = []
    for part in (plain, scaled):
        part._family.layers(part.model)[0].register_forward_pre_hook(lambda _, given: read.append(given[0]))
    batch = observations()
    plain(batch, ("tokens",))
    decoder = scaled(batch, ("decoder",))["decoder"].decoder
    close(read[1][:, :-1], read[0][:, :-1] * 24**0.5)
    close(read[1][:, -1], read[0][:, -1])
    ids = batch["task.input_ids"]
    close(decoder.embed(ids), scaled.model.text_model.embed_tokens(ids) * 24**0.5)


# --- what does not fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "options", "given", "field", "message"),
    [
        ("paligemma", {}, inputs(64), "architecture", "reads images of 32 x 32, not 64 x 64"),
        ("smolvlm", {}, inputs(40), "architecture", "sides are multiples of 16, not 40 x 40"),
        ("qwen2_5_vl", {}, inputs(36), "architecture", "sides are multiples of 8"),
        ("florence2", {}, inputs(36), "architecture", "sides are multiples of 8"),
        ("florence2", {}, inputs(320), "architecture", "reads images of 160 x 160"),
        ("paligemma", {}, inputs(vocab=513), "architecture", "513 token ids, but .* has 512 embeddings"),
        ("paligemma", {}, inputs(length=500), "architecture", "532 tokens, 500 of them the prompt's"),
        ("paligemma", {"queries": 475}, inputs(), "architecture", "reads at most 512"),
        ("paligemma", {"depth": 3}, inputs(), "depth", "`depth` is 3, but there are 2 layers"),
        ("paligemma", {"layer": 3}, inputs(), "layer", "`layer` is 3, but there are 2 layers"),
        ("paligemma", {"depth": 1, "layer": 2}, inputs(), "layer", "`layer` is 2, but there are 1 layers"),
        ("florence2", {"rope": 100.0}, inputs(), "rope", "an encoder, which does not use `rope`"),
        ("florence2", {"decoder": True}, inputs(), "decoder", "does not use `decoder`"),
    ],
)
def test_what_does_not_fit_is_said(family: str, options: Any, given: Any, field: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        build(given, architecture=architecture(family), **options)
    assert caught.value.field == field
    assert caught.value.help


def test_inputs_that_are_missing_are_named() -> None:
    options = {"architecture": architecture("paligemma")}
    given = inputs()
    ids = given.pop("task.input_ids")
    with pytest.raises(SpecError, match="reads token_ids inputs, and there are none") as caught:
        build(given, **options)
    assert "collator: {type: language" in caught.value.help
    stateless = {key: spec for key, spec in inputs().items() if key != "observation.state"}
    with pytest.raises(SpecError, match="reads state inputs") as caught:
        build(stateless, state="token", **options)
    assert caught.value.field == "state"
    with pytest.raises(SpecError, match=r"`observation.state` is state") as caught:
        build(inputs(), reads=["observation.state"], **options)
    assert (caught.value.field, caught.value.help) == ("reads.0", "set `state: token` to read the state")
    with pytest.raises(SpecError, match="reads one prompt, and there are 2"):
        build({**inputs(), "other.input_ids": ids}, **options)
    some = ["observation.images.wrist", "other.input_ids"]
    part = build({**inputs(), "other.input_ids": ids}, reads=some, **options)
    assert part.keys == tuple(some)


def test_models_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(WeightsError, match="is a `vit` model, expected one of florence2, internvl"):
        Vlm.facts(Vlm.Config(type="vlm", pretrained=str(tmp_path)))
    config = Vlm.Config(type="vlm", architecture=architecture("internvl"))
    facts = Vlm.facts(config)
    facts["config"]["text_config"]["model_type"] = "gpt2"
    with pytest.raises(SpecError, match=r"the language model of .* is `gpt2`"):
        Vlm.specs(config, inputs(), facts)
    facts = Vlm.facts(config)
    facts["config"]["text_config"]["rope_parameters"] |= {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(SpecError, match="scales its rotary embedding by `linear`"):
        Vlm.specs(config, inputs(), facts)
    with pytest.raises(WeightsError, match="weights of OpenVLA cannot be loaded"):
        build(pretrained="policysmith/tiny-openvla")


def test_weights_of_another_model_do_not_fit(tmp_path: Path) -> None:
    save("smolvlm", tmp_path)
    held = json.loads((tmp_path / "config.json").read_text())
    held["text_config"]["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(held))
    with pytest.raises(WeightsError, match="lacks 9 tensors of SmolVLMModel"):
        build(pretrained=str(tmp_path))


def test_a_prompt_of_any_length(tmp_path: Path) -> None:
    given = {**inputs(), "task.input_ids": Spec(Kind.TOKEN_IDS, ("B", "L"), vocab=500)}
    part = build(given, architecture=architecture("paligemma"))
    specs = Vlm.specs(part.config, given, Vlm.facts(part.config))
    assert specs["tokens"].dims == ("B", "N", 16)
    assert part(observations(length=9), ("tokens",))["tokens"].values.shape[1] == 32 + 9


def size(part: Vlm) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_no_weights_fill_trains_beside_adapters() -> None:
    part = build(architecture=architecture("paligemma"), queries=2, soft_prompts=1, state="token")
    lora.adapt(part, LoraSection(rank=2))
    trains = {name for name, parameter in part.named_parameters() if parameter.requires_grad}
    assert {"queries", "soft_prompts", "state.weight", "state.bias"} <= trains
    assert all("lora_" in name for name in trains if name.startswith("model."))


def test_an_adapter_of_the_language_head_is_heard() -> None:
    part = build(architecture=architecture("internvl"), decoder=True)
    lora.adapt(part, LoraSection(rank=2, targets=["lm_head"]))
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    decoder = part(observations(), ["decoder"])["decoder"].decoder
    assert decoder is not None
    hidden = torch.randn(2, 3, part._family.width)
    merged = copy.deepcopy(part)
    lora.merge(merged)
    assert merged.lm_head is not None
    torch.testing.assert_close(decoder.logits(hidden), merged.lm_head(hidden), atol=1e-5, rtol=1e-5)
