"""Text: the encoder against transformers' own, and the collators."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    T5Config,
    T5EncoderModel,
)

from policysmith.components.backbones.language import Language
from policysmith.components.collators.default import DefaultCollator, stack
from policysmith.components.collators.language import LanguageCollator
from policysmith.schemas.errors import DatasetError, SpecError, WeightsError
from policysmith.schemas.specs import Kind, Spec

TASK = {"task": Spec(Kind.TEXT, ("B",))}


def ids(length: int = 6, vocab: int | None = 30) -> dict[str, Spec]:
    return {"task.input_ids": Spec(Kind.TOKEN_IDS, ("B", length), vocab=vocab)}


def text_batch() -> dict[str, torch.Tensor]:
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    return {"task.input_ids": torch.randint(3, 30, (2, 6)), "task.attention_mask": mask}


def save(kind: str, directory: Path) -> Any:
    """Save a small checkpoint, and return the model of transformers."""
    text = {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    if kind == "bert":
        BertModel(BertConfig(max_position_embeddings=8, **text)).save_pretrained(directory)
        return BertModel.from_pretrained(directory).eval()
    if kind == "t5":
        T5EncoderModel(
            T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
        ).save_pretrained(directory)
        return T5EncoderModel.from_pretrained(directory).eval()
    vision = {**text, "image_size": 16, "patch_size": 8}
    vision.pop("vocab_size")
    CLIPModel(
        CLIPConfig(
            text_config={**text, "max_position_embeddings": 8, "eos_token_id": 31}, vision_config=vision
        )
    ).save_pretrained(directory)
    return CLIPTextModel.from_pretrained(directory).eval()


def build(directory: Path, inputs: dict[str, Spec] | None = None, **options: Any) -> Language:
    config, inputs = Language.Config(type="language", pretrained=str(directory), **options), inputs or ids()
    facts = Language.facts(config)
    Language.specs(config, inputs, facts)
    part = Language(config, inputs, facts)
    part.load_pretrained()
    return part.eval()


@pytest.mark.parametrize("kind", ["bert", "t5", "clip"])
def test_encoder_gives_what_transformers_gives(kind: str, tmp_path: Path) -> None:
    reference, part, batch = save(kind, tmp_path), build(tmp_path), text_batch()
    assert [name for name, _ in part.named_parameters() if "pooler" in name] == []
    out = part(batch, ("pooled", "tokens"))
    hidden = reference(
        input_ids=batch["task.input_ids"], attention_mask=batch["task.attention_mask"]
    ).last_hidden_state
    torch.testing.assert_close(out["tokens"].values, hidden)
    assert torch.equal(out["tokens"].mask, batch["task.attention_mask"].bool())
    mean = torch.stack([hidden[0, :3].mean(0), hidden[1].mean(0)])
    if kind != "clip":
        torch.testing.assert_close(out["pooled"].values, mean)
    else:
        mean_of_clip = build(tmp_path, pooling="mean")(batch, ("pooled",))["pooled"].values
        torch.testing.assert_close(mean_of_clip, mean)


def test_clip_pools_as_it_compares_texts_with_images(tmp_path: Path) -> None:
    save("clip", tmp_path)
    whole, part, batch = CLIPModel.from_pretrained(tmp_path).eval(), build(tmp_path), text_batch()
    end = whole.config.text_config.eos_token_id
    batch["task.input_ids"][0, 2], batch["task.input_ids"][1, 5] = end, end
    expected = whole.get_text_features(
        input_ids=batch["task.input_ids"], attention_mask=batch["task.attention_mask"]
    ).pooler_output
    found = part(batch, ("pooled",))["pooled"].values
    torch.testing.assert_close(found, expected)
    specs = Language.specs(part.config, ids(), Language.facts(part.config))
    assert specs["pooled"].dims == ("B", 512) == ("B", found.shape[1])
    assert specs["tokens"].dims == ("B", 6, 16)
    last = build(tmp_path, pooling="last")(batch, ("pooled",))["pooled"].values
    torch.testing.assert_close(whole.text_projection(last), expected)


def test_only_clip_projects(tmp_path: Path) -> None:
    save("bert", tmp_path)
    with pytest.raises(SpecError, match="is a `bert` model, which projects nothing") as caught:
        build(tmp_path, pooling="projected")
    assert caught.value.field == "pooling"


def test_padding_may_stand_on_the_left(tmp_path: Path) -> None:
    save("bert", tmp_path)
    part, batch = build(tmp_path, pooling="last"), text_batch()
    left = {**batch, "task.attention_mask": batch["task.attention_mask"].flip(1)}
    out = part(left, ("tokens", "pooled"))
    torch.testing.assert_close(out["pooled"].values, out["tokens"].values[:, -1])


# --- an encoder that rests -----------------------------------------------------------------------------------------


def resting(directory: Path, **options: Any) -> tuple[Language, list[int]]:
    """Return a frozen encoder, and a list of the number of prompts that it reads at a time."""
    part, sizes = build(directory, **options).requires_grad_(False), []
    part.model.register_forward_pre_hook(
        lambda _, args, given: sizes.append(len(given["input_ids"])), with_kwargs=True
    )
    return part, sizes


def keyed(batch: dict[str, Any]) -> dict[str, Any]:
    rows = zip(batch["task.input_ids"], batch["task.attention_mask"], strict=True)
    return {**batch, "task.key": [row.numpy().tobytes() + mask.numpy().tobytes() for row, mask in rows]}


@pytest.mark.parametrize("kind", ["bert", "t5", "clip"])
def test_a_frozen_encoder_reads_each_prompt_once(kind: str, tmp_path: Path) -> None:
    save(kind, tmp_path)
    (part, sizes), batch = resting(tmp_path), keyed(text_batch())
    repeated = {
        key: [*value, *value] if isinstance(value, list) else torch.cat([value, value])
        for key, value in batch.items()
    }
    first = part(repeated, ("pooled", "tokens"))
    assert sizes == [1, 1]
    again = part(repeated, ("pooled", "tokens"))
    assert sizes == [1, 1]
    without = part({key: value for key, value in repeated.items() if key != "task.key"}, ("pooled", "tokens"))
    assert sizes == [1, 1, 4]
    for name in ("pooled", "tokens"):
        assert torch.equal(first[name].values, again[name].values)
        torch.testing.assert_close(first[name].values, without[name].values)
    assert torch.equal(first["tokens"].mask, without["tokens"].mask)


def test_what_is_remembered_is_never_stale(tmp_path: Path) -> None:
    save("bert", tmp_path)
    (part, sizes), batch = resting(tmp_path), keyed(text_batch())
    before = part(batch, ("pooled",))["pooled"].values
    changes = [
        lambda: part.load_state_dict({key: value + 0.1 for key, value in part.state_dict().items()}),
        lambda: part.model.embeddings.word_embeddings.weight.mul_(1.5),
        lambda: part.to(torch.bfloat16),
        lambda: part.load_pretrained(),
    ]
    for change in changes:
        with torch.no_grad():
            change()
        sizes.clear()
        after = part(batch, ("pooled",))["pooled"].values
        assert sizes == [1, 1]
        assert not torch.equal(before, after)
        before = after
    other = {**batch, "task.input_ids": batch["task.input_ids"].flip(0)}
    swapped = part(keyed({key: value for key, value in other.items() if key != "task.key"}), ("pooled",))
    assert sizes == [1, 1, 1, 1]
    assert not torch.equal(swapped["pooled"].values, before)


def test_an_encoder_that_trains_remembers_nothing(tmp_path: Path) -> None:
    save("bert", tmp_path)
    (part, sizes), batch = resting(tmp_path), keyed(text_batch())
    next(part.parameters()).requires_grad_(True)
    part(batch, ("pooled",))
    part.requires_grad_(False).train()
    part(batch, ("pooled",))
    assert sizes == [2, 2]


def test_memory_is_bounded_and_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("bert", tmp_path)
    (part, sizes), batch = resting(tmp_path), keyed(text_batch())
    monkeypatch.setattr("policysmith.components.language.prompt_cache._MOST", 1)
    first = part(batch, ("pooled",))["pooled"].values
    assert torch.equal(first, part(batch, ("pooled",))["pooled"].values)
    assert sizes == [1, 1, 1]
    assert len(part._remembered._rows) == 1
    assert copy.deepcopy(part)._remembered._rows == {}
    assert torch.equal(first, copy.deepcopy(part)(batch, ("pooled",))["pooled"].values)


def test_what_inference_remembered_serves_training(tmp_path: Path) -> None:
    save("bert", tmp_path)
    (part, _), batch = resting(tmp_path), keyed(text_batch())
    with torch.inference_mode():
        part(batch, ("pooled",))
    scale = torch.ones(1, requires_grad=True)
    (part(batch, ("pooled",))["pooled"].values * scale).sum().backward()
    assert scale.grad is not None


def test_architecture_starts_from_random_weights(tmp_path: Path) -> None:
    save("bert", tmp_path)
    config = Language.Config(type="language", architecture=str(tmp_path))
    part = Language(config, ids(), Language.facts(config))
    before = copy.deepcopy(part.state_dict())
    part.load_pretrained()
    assert all(torch.equal(value, before[key]) for key, value in part.state_dict().items())
    for given in ({}, {"architecture": str(tmp_path), "pretrained": str(tmp_path)}):
        with pytest.raises(SpecError, match=r"needs a model|both set"):
            Language.facts(Language.Config(type="language", **given))


def test_pooling(tmp_path: Path) -> None:
    save("bert", tmp_path)
    batch = text_batch()
    hidden = build(tmp_path)(batch, ("tokens",))["tokens"].values
    first = build(tmp_path, pooling="first")(batch, ("pooled",))["pooled"].values
    last = build(tmp_path, pooling="last")(batch, ("pooled",))["pooled"].values
    torch.testing.assert_close(first, hidden[:, 0])
    torch.testing.assert_close(last, torch.stack([hidden[0, 2], hidden[1, 5]]))


def test_padding_has_no_influence(tmp_path: Path) -> None:
    save("bert", tmp_path)
    part, batch = build(tmp_path), text_batch()
    changed = {
        **batch,
        "task.input_ids": torch.where(batch["task.attention_mask"] == 1, batch["task.input_ids"], 1),
    }
    assert not torch.equal(changed["task.input_ids"], batch["task.input_ids"])
    torch.testing.assert_close(
        part(batch, ("pooled",))["pooled"].values, part(changed, ("pooled",))["pooled"].values
    )


def test_tokenizer_must_not_be_larger_than_the_embedding(tmp_path: Path) -> None:
    save("bert", tmp_path)
    with pytest.raises(SpecError, match=r"tokenizer has 33 token ids, but .* has 32 embeddings") as caught:
        build(tmp_path, ids(vocab=33))
    assert (caught.value.field, caught.value.source) == ("pretrained", "task.input_ids")
    build(tmp_path, ids(vocab=32))
    build(tmp_path, ids(vocab=None))


def test_instructions_must_not_be_longer_than_the_encoder_reads(tmp_path: Path) -> None:
    save("bert", tmp_path)
    with pytest.raises(SpecError, match=r"prompts are padded to 9 tokens, but .* reads at most 8") as caught:
        build(tmp_path, ids(length=9))
    assert "`max_length`" in caught.value.help


def test_without_token_ids_the_collator_is_named(tmp_path: Path) -> None:
    save("bert", tmp_path)
    with pytest.raises(SpecError) as caught:
        build(tmp_path, dict(TASK))
    assert "collator: {type: language, tokenizer:" in caught.value.help


def test_an_image_model_is_no_text_encoder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(WeightsError, match="is a `vit` model"):
        Language.facts(Language.Config(type="language", pretrained=str(tmp_path)))


# --- collators ---------------------------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path: Path, saved_tokenizer: Any) -> Callable[..., LanguageCollator]:
    """`make(**options)`: a collator with a saved tokenizer of seven words."""

    def build(**options: Any) -> LanguageCollator:
        config = LanguageCollator.Config(**{**saved_tokenizer(tmp_path), **options})
        return LanguageCollator(config, LanguageCollator.facts(config))

    return build


def test_tokens_are_the_tokenizers(tmp_path: Path, make: Any) -> None:
    part = make(max_length=5)
    texts = ["open the drawer", "close", "open the drawer"]
    batch = part([{"task": text, "action": torch.ones(2)} for text in texts])
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "tokenizer"))
    expected = tokenizer(texts, padding="max_length", max_length=5, return_tensors="pt")
    assert torch.equal(batch["task.input_ids"], expected.input_ids)
    assert torch.equal(batch["task.attention_mask"], expected.attention_mask)
    assert batch["task.input_ids"].tolist()[0] == [2, 4, 5, 0, 0]
    assert batch["task.input_ids"].dtype == torch.int64
    assert batch["task"] == texts
    assert batch["action"].shape == (3, 2)


def test_each_instruction_is_tokenized_once(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    part, calls = make(), []
    tokenizer = part._tokenizer
    monkeypatch.setattr(part, "_tokenizer", lambda text, **k: calls.append(text) or tokenizer(text, **k))
    part._tokenizer.pad_token_id = 0
    for _ in range(3):
        part([{"task": "open the door"}, {"task": "close the door"}])
    assert calls == ["open the door", "close the door"]


def test_long_instructions_are_an_error_or_cut(make: Any) -> None:
    with pytest.raises(DatasetError, match=r"'open the drawer' has 3 tokens, more than `max_length: 2`"):
        make(max_length=2)([{"task": "open the drawer"}])
    batch = make(max_length=2, truncate="end")([{"task": "open the drawer"}])
    assert batch["task.input_ids"].tolist() == [[2, 4]]


def test_padding_to_the_longest(make: Any) -> None:
    part = make(padding="longest")
    batch = part([{"task": "open"}, {"task": "close the door"}])
    assert batch["task.input_ids"].tolist() == [[2, 0, 0], [3, 4, 6]]
    left = make(padding="longest", padding_side="left")([{"task": "open"}, {"task": "close the door"}])
    assert left["task.input_ids"].tolist() == [[0, 0, 2], [3, 4, 6]]
    assert left["task.attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    specs = part.specs(part.config, TASK, {"vocab_size": 7})
    assert specs["task.input_ids"].dims == ("B", "L")
    assert specs["task.input_ids"].vocab == 7


def test_language_collator_needs_a_task(make: Any) -> None:
    config = LanguageCollator.example()
    with pytest.raises(SpecError, match="the data has none") as caught:
        LanguageCollator.specs(config, {}, {"vocab_size": 7})
    assert caught.value.source == "task"
    with pytest.raises(DatasetError, match="the samples have none"):
        make()([{"action": torch.ones(2)}])


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = LanguageCollator.Config(type="language", tokenizer=str(tmp_path / "empty"))
    with pytest.raises(WeightsError, match="cannot read the tokenizer"):
        LanguageCollator.facts(config)


def test_default_collator_stacks_what_samples_hold() -> None:
    samples = [
        {
            "action": torch.full((4, 3), float(i)),
            "state": np.full(2, i, np.float32),
            "index": i,
            "done": i == 1,
            "task": f"t{i}",
        }
        for i in range(3)
    ]
    config = DefaultCollator.Config(type="default")
    batch = DefaultCollator(config, {})(samples)
    assert batch["action"].shape == (3, 4, 3)
    assert torch.equal(batch["state"], torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]))
    assert batch["index"].tolist() == [0, 1, 2]
    assert batch["done"].tolist() == [False, True, False]
    assert batch["task"] == ["t0", "t1", "t2"]


def test_samples_that_do_not_match_are_named() -> None:
    good = {"action": torch.zeros(4, 3)}
    with pytest.raises(
        DatasetError, match=r"`action` of sample 2 of the batch is \(4, 2\).*of sample 0 it is \(4, 3\)"
    ):
        stack([good, good, {"action": torch.zeros(4, 2)}])
    with pytest.raises(DatasetError, match=r"`action` of sample 1 .* torch.float64"):
        stack([good, {"action": torch.zeros(4, 3, dtype=torch.float64)}])
    with pytest.raises(DatasetError, match="sample 1 of the batch and sample 0 differ in keys: state"):
        stack([good, {**good, "state": torch.zeros(2)}])
    with pytest.raises(DatasetError, match="at least one sample"):
        stack([])
