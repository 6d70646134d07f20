"""The image batch beside torchvision and float64."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as tv

from policysmith.components.kernels import image_batch as module
from policysmith.components.kernels.dispatch import INTERPRETED
from policysmith.components.kernels.image_batch import image_batch, reference

STATISTICS: dict[str, Any] = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
COLORS = torch.tensor([[1.3, 0.7, 1.4, 0.08], [0.6, 1.5, 0.2, -0.3], [1.0, 1.0, 1.0, 0.0]])
WHOLE = torch.tensor([[1.0, 2.0, 9.0, 11.0], [0.0, 0.0, 13.0, 17.0], [4.0, 3.0, 3.0, 4.0]])


def bytes_like(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("size", [(7, 5), (9, 11), (20, 3)], ids=str)
def test_it_is_torchs_resize_of_the_crop_and_torchvisions_jitter(size: tuple[int, int], device: str) -> None:
    images = bytes_like(3, 1, 3, 13, 17)
    found = image_batch(images.to(device), WHOLE.to(device), COLORS.to(device), size, **STATISTICS).cpu()
    for sample, (top, left, height, width) in enumerate(WHOLE.int().tolist()):
        crop = images[sample, :, :, top : top + height, left : left + width].double() / 255.0
        want = F.interpolate(crop, size, mode="bilinear", antialias=True)
        brightness, contrast, saturation, hue = COLORS[sample].double().tolist()
        want = tv.adjust_contrast(tv.adjust_brightness(want, brightness), contrast)
        want = tv.adjust_hue(tv.adjust_saturation(want, saturation), hue)
        want = tv.normalize(want, list(STATISTICS["mean"]), list(STATISTICS["std"]))
        # torchvision's luma is rounded to four digits
        torch.testing.assert_close(found[sample].double(), want, atol=2e-3, rtol=0.0)


@pytest.mark.parametrize(
    ("channels", "jitter", "dtype"),
    [
        ("first", True, torch.float32),
        ("last", True, torch.bfloat16),
        ("last", False, torch.float32),
        ("first", False, torch.bfloat16),
    ],
    ids=str,
)
def test_it_errs_no_more_than_float32(
    channels: Literal["first", "last"], jitter: bool, dtype: torch.dtype, device: str
) -> None:
    boxes = torch.tensor([[0.5, 1.25, 6.5, 9.75], [-2.0, 3.0, 13.0, 17.0], [0.0, 0.0, 13.0, 1.0]]).to(device)
    colors = COLORS.to(device) if jitter else None
    images = bytes_like(3, 2, 3, 13, 17).to(device)
    images = images.movedim(2, -1).contiguous() if channels == "last" else images
    options: dict[str, Any] = {**STATISTICS, "size": (6, 21), "channels": channels}
    check(images, boxes, colors, dtype, options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("before", "after"),
    [((70, 90), (6, 5)), ((48, 64), (37, 20)), ((20, 40), (36, 41))],
    ids=str,
)
def test_scales_and_tiles_may_be_any(
    before: tuple[int, int], after: tuple[int, int], dtype: torch.dtype, device: str
) -> None:
    """Resizing takes several products along both axes, with tiles at the edges and boxes beyond all sides."""
    height, width = before
    shares = torch.tensor([[0.0, 0.0, 1.0, 1.0], [-0.3, 0.41, 0.9, 1.0], [0.8, -0.77, 0.61, 0.57]])
    boxes = (shares * torch.tensor([height, width, height, width])).to(device)
    images = bytes_like(3, 1, 3, height, width).to(device)
    check(images, boxes, COLORS.to(device), dtype, {**STATISTICS, "size": after})


def check(
    images: torch.Tensor,
    boxes: torch.Tensor,
    colors: torch.Tensor | None,
    dtype: torch.dtype,
    options: dict[str, Any],
) -> None:
    """Check that two runs give the same bits, with at most one and a half times the reference's error."""
    exact = reference(images, boxes.double(), colors, dtype=torch.float64, **options)
    eager = reference(images, boxes, colors, dtype=dtype, **options)
    ours, again = (image_batch(images, boxes, colors, dtype=dtype, **options) for _ in range(2))
    assert torch.equal(ours, again)
    assert (ours.shape, ours.dtype) == (eager.shape, dtype)
    error, yardstick = ((x.double() - exact).norm() / exact.norm() for x in (ours, eager))
    factor = 4.0 if INTERPRETED and dtype == torch.bfloat16 else 1.5
    assert error <= max(factor * yardstick, 2.0 * torch.finfo(torch.float32).eps)


def test_a_window_of_the_size_is_copied_and_edges_fill_what_is_outside(device: str) -> None:
    images = bytes_like(2, 1, 3, 8, 9).to(device)
    boxes = torch.tensor([[2.0, 3.0, 5.0, 4.0], [-2.0, 6.0, 5.0, 4.0]]).to(device)
    found = image_batch(images, boxes, None, (5, 4)) * 255.0
    torch.testing.assert_close(found[0], images[0, :, :, 2:7, 3:7].float())
    padded = F.pad(images[1].float(), (0, 1, 2, 0), mode="replicate")
    torch.testing.assert_close(found[1], padded[:, :, :5, 6:10])
    for colors in (None, COLORS[:2].to(device)):
        slow, fast = (
            image_batch(images, boxes, colors, (5, 4), resizes=resizes) for resizes in (True, False)
        )
        torch.testing.assert_close(fast, slow, atol=1e-6, rtol=1e-5)


@pytest.mark.gpu
def test_it_matters_not_whether_programs_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = pytest.importorskip("policysmith.components.kernels.programs.image_batch")
    images, boxes = bytes_like(300, 2, 3, 64, 80).cuda(), torch.tensor([[1.5, 2.25, 60.0, 70.5]]).cuda()
    colors = COLORS[torch.arange(300) % 3].cuda()
    found = []
    for waits in (True, False):
        monkeypatch.setattr(programs, "_WAITS", waits)
        found.append(image_batch(images, boxes.expand(300, 4), colors, (90, 70), dtype=torch.bfloat16))
    torch.testing.assert_close(*found)


def test_it_is_a_sound_operator(device: str) -> None:
    images = bytes_like(3, 1, 3, 13, 17)[:1].to(device)
    arguments = (5, 6, True, False, [0.5] * 3, [0.5] * 3, torch.float32)
    torch.library.opcheck(module._forward, (images, WHOLE[:1].to(device), COLORS[:1].to(device), *arguments))


def test_it_compiles_without_a_break(device: str) -> None:
    images, boxes = bytes_like(1, 1, 3, 13, 17).to(device), WHOLE[:1].to(device)
    compiled = torch.compile(
        lambda x: image_batch(x, boxes, None, (5, 4)) + 1.0, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(images), image_batch(images, boxes, None, (5, 4)) + 1.0)
