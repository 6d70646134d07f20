"""Vision-language models: what they read against transformers' own forward, family by family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, Qwen2VLImageProcessor

from policysmith.components import pretrained
from policysmith.components.backbones.vlm import Vlm
from policysmith.schemas.specs import Kind, Spec

LENGTHS = (5, 3)
PER_FRAME = {"paligemma": 16, "smolvlm": 4, "internvl": 4, "qwen2_5_vl": 16, "qwen3_vl": 4, "florence2": 17}
FAMILIES = sorted(PER_FRAME)


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


def reference(model: Any, family: str, batch: dict[str, Tensor], per_frame: int) -> dict[str, Any]:
    """What transformers makes of [front | wrist | prompt], its own way: which tokens are valid, the last hidden states,
    what each layer reads, and the cache.
    """
    frames = torch.stack([batch[f"observation.images.{key}"][:, 0] for key in ("front", "wrist")], 1)
    ids, mask = batch["task.input_ids"], batch["task.attention_mask"]
    frame = [511] * per_frame
    options: dict[str, Any] = {"pixel_values": frames.flatten(0, 1)}
    if family.startswith("qwen"):
        frame = [509, *frame, 508]
        vision = model.config.vision_config
        sizes = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
        processor = Qwen2VLImageProcessor(do_resize=False, do_rescale=False, do_normalize=False, **sizes)
        packed = processor(images=list(frames.flatten(0, 1)), return_tensors="pt")
        options |= {"pixel_values": packed.pixel_values, "image_grid_thw": packed.image_grid_thw}
    whole = torch.cat([torch.tensor(2 * frame).expand(2, -1), ids], 1)
    valid = torch.cat([torch.ones(2, 2 * len(frame), dtype=torch.long), mask], 1)
    if family == "paligemma":
        options |= {"token_type_ids": torch.zeros_like(whole), "position_ids": valid.cumsum(1) - 1}
    elif family.startswith("qwen"):
        options["mm_token_type_ids"] = (whole == 511).int()
    elif family == "smolvlm":
        options["pixel_values"] = frames
    elif family == "florence2":
        options["decoder_input_ids"] = torch.ones(2, 1, dtype=torch.long)
    text: Any = {
        "smolvlm": lambda: model.model.text_model,
        "florence2": lambda: model.model.language_model.encoder,
    }
    read: list[Tensor] = []
    for layer in text.get(family, lambda: model.model.language_model)().layers:
        layer.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    with torch.no_grad():
        out = model.model(input_ids=whole, attention_mask=valid, use_cache=True, **options)
    last = out.encoder_last_hidden_state if family == "florence2" else out.last_hidden_state
    return {"valid": valid.bool(), "last": last, "read": read, "cache": out.cache}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [32, 64])
def test_it_reads_what_transformers_reads(family: str, size: int, tmp_path: Path) -> None:
    if size != 32 and family == "paligemma":
        pytest.skip("it sees images of one size")
    per_frame = PER_FRAME[family] * (size // 32) ** 2 - 3 * (size // 64) * (family == "florence2")
    model, batch = save(family, tmp_path), observations(size)
    expected = reference(model, family, batch, per_frame)
    options = {"attention": "causal"} if family == "smolvlm" else {}
    part = build(inputs(size), pretrained=str(tmp_path), **options)
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


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
