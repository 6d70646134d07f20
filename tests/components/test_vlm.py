"""Vision-language models: what they read against transformers' own forward, family by family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from policysmith.components import pretrained
from policysmith.components.backbones.vlm import Vlm
from policysmith.schemas.specs import Kind, Spec

LENGTHS = (5, 3)
FAMILIES = ["paligemma"]


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
    """A tiny checkpoint with weights far from their initial values, and transformers' model of it."""
    path = Path(pretrained.__file__).parent / "architectures" / f"policysmith--tiny-{family}.json"
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


def reference(model: Any, family: str, batch: dict[str, Tensor], **options: Any) -> tuple[Any, Tensor]:
    """What transformers makes of [front | wrist | prompt], and which tokens are valid."""
    frames = torch.stack([batch[f"observation.images.{key}"][:, 0] for key in ("front", "wrist")], 1)
    per_frame = {"paligemma": 16}[family]
    ids, mask = batch["task.input_ids"], batch["task.attention_mask"]
    images = ids.new_full((2, 2 * per_frame), model.config.image_token_id)
    whole, valid = torch.cat([images, ids], 1), torch.cat([torch.ones_like(images), mask], 1)
    if family == "paligemma":
        options |= {"token_type_ids": torch.zeros_like(whole), "position_ids": valid.cumsum(1) - 1}
    out = model.model(
        input_ids=whole,
        pixel_values=frames.flatten(0, 1),
        attention_mask=valid,
        output_hidden_states=True,
        use_cache=True,
        **options,
    )
    return out, valid.bool()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_reads_what_transformers_reads(family: str, tmp_path: Path) -> None:
    model, batch = save(family, tmp_path), observations()
    with torch.no_grad():
        expected, valid = reference(model, family, batch)
        found = build(pretrained=str(tmp_path))(batch, ("tokens", "layers", "key_values"))
    assert torch.equal(found["tokens"].mask, valid)
    close(found["tokens"].values[valid], expected.last_hidden_state[valid])
    for index, hidden in enumerate(expected.hidden_states[1:]):
        close(found["layers"].values[:, index][valid], hidden[valid])
    for index, layer in enumerate(expected.cache.layers):
        keys, values = found["key_values"].values[:, index].unbind(1)
        close(keys.transpose(1, 2)[valid], layer.keys.transpose(1, 2)[valid])
        close(values.transpose(1, 2)[valid], layer.values.transpose(1, 2)[valid])
    assert torch.equal(found["key_values"].end, valid.sum(1))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
