"""Time of every kernel beside eager torch, torch.compile of the same reference, and what else does the same.

    python benchmarks/kernels.py --output benchmarks/results/kernels.json

`gpu_ms` is the median between two CUDA events around a CUDA graph of the call, with the L2 cache overwritten before each
run, so that inputs come from memory and launches of the host do not count; what cannot be captured (torchvision's
transforms) runs as it is. `call_ms` is the wall time of a call among many
without a pause, launches included, with whatever the cache still holds. `floor_ms` is the bytes that have to be read
and written over the bandwidth of a copy measured in the same run. Times of compiled functions are without compiling.
`--device cpu --tiny` runs the references alone, to see that the script works.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timing import copy_bandwidth, machine, measure
from torch import Tensor
from torchvision.transforms import v2  # type: ignore[import-untyped]

from policysmith.components.kernels import adamw, gelu, group_norm_mish, image_batch, modulated_norm
from policysmith.components.kernels.eight_bit import encode
from policysmith.components.randomness.per_sample import SAMPLE_KEY, Draws

Run = Callable[[], Any]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class Case:
    """One piece of work; `variants` do it, by name, and `bytes` must be moved for it."""

    name: str
    shape: str
    bytes: int
    variants: dict[str, Run]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    device, compiles = arguments.device, arguments.device == "cuda" and not arguments.no_compile
    torch.manual_seed(0)
    bandwidth = copy_bandwidth(device, 2**20 if arguments.tiny else 2**28)
    sys.stdout.write(f"copy: {bandwidth / 1e9:.0f} GB/s\n")
    result: dict[str, Any] = {
        "what": __doc__,
        "command": f"python benchmarks/kernels.py {shlex.join(sys.argv[1:])}",
        "machine": machine(),
        "copy_bytes_per_second": bandwidth,
        "rows": [],
    }
    for case in cases(device, arguments.tiny, compiles):
        sys.stdout.write(f"\n{case.name} {case.shape}, floor {case.bytes / bandwidth * 1e3:.4f} ms\n")
        for name, run in case.variants.items():
            gpu, call = measure(run, device, captured=not name.startswith("torchvision"))
            row = {"case": case.name, "shape": case.shape, "variant": name, "gpu_ms": gpu, "call_ms": call}
            result["rows"].append(row | {"bytes": case.bytes, "floor_ms": case.bytes / bandwidth * 1e3})
            sys.stdout.write(f"  {name:28} gpu {gpu:9.4f} ms   call {call:9.4f} ms\n")
            sys.stdout.flush()
        case.variants.clear()
        if arguments.output is not None:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def cases(device: str, tiny: bool, compiles: bool) -> Iterator[Case]:
    """Yield one case after the other, so that each finds the memory of the previous one free."""
    for samples in (2,) if tiny else (32, 256):
        yield norm_case(samples, *((3, 16) if tiny else (49, 1536)), "layer", device, compiles)
        yield norm_case(samples, *((3, 16) if tiny else (51, 1024)), "rms", device, compiles)
    yield image_case(*((2, 20, 16) if tiny else (512, 256, 224)), device, compiles)
    yield adamw_case(tiny, device)
    yield adamw_case(tiny, device, eight_bit=True)
    yield group_norm_case(*((2, 16, 4) if tiny else (64, 512, 16)), device, compiles)
    yield gelu_case(*((6, 16) if tiny else (256 * 197, 3072)), 0.0, device, compiles)
    yield gelu_case(*((6, 16) if tiny else (256 * 49, 6144)), 0.2, device, compiles)


def norm_case(
    samples: int, tokens: int, width: int, norm: modulated_norm.Norm, device: str, compiles: bool
) -> Case:
    """Build gated residual, norm and modulation, forward and backward."""
    residual, branch = (leaf(device, samples, tokens, width) for _ in range(2))
    gate, shift, scale = (leaf(device, samples, width) for _ in range(3))
    inputs = (residual, branch, gate, shift, scale)

    def of_kind(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: function(*given, norm=norm)

    plain, ours = (of_kind(f) for f in (modulated_norm.reference, modulated_norm.modulated_norm))
    variants = differentiated(plain, ours, inputs, (residual, residual), device, compiles)
    # forward reads 2 and writes 2 such tensors; backward reads 4 and writes 2
    return Case(
        f"gated residual, {norm} norm, modulation",
        f"{(samples, tokens, width)} bf16",
        10 * size(residual),
        variants,
    )


def group_norm_case(samples: int, channels: int, steps: int, device: str, compiles: bool) -> Case:
    """Group norm of 8 groups, Mish and FiLM, forward and backward."""
    x, *rest = (leaf(device, *shape) for shape in ((samples, channels, steps), (channels,), (channels,)))
    film = tuple(leaf(device, samples, channels) for _ in range(2))

    def with_groups(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, *others: function(x, 8, *others)

    plain, ours = (with_groups(f) for f in (group_norm_mish.reference, group_norm_mish.group_norm_mish))
    variants = differentiated(plain, ours, (x, *rest, *film), x, device, compiles)
    return Case("group norm, Mish, FiLM", f"{(samples, channels, steps)} bf16", 5 * size(x), variants)


def gelu_case(rows: int, width: int, dropout: float, device: str, compiles: bool) -> Case:
    """Build bias, GELU and dropout, forward and backward."""
    values, bias = leaf(device, rows, width), leaf(device, width)
    seed = torch.tensor([1], device=device)

    def plain(values: Tensor, bias: Tensor) -> Tensor:
        return F.dropout(F.gelu(values + bias), dropout, training=dropout > 0.0)

    def ours(values: Tensor, bias: Tensor) -> Tensor:
        return gelu.gelu(values, bias, seed, dropout=dropout)

    variants = differentiated(plain, ours, (values, bias), values, device, compiles)
    name = "bias, GELU" + (f", dropout {dropout:g}" if dropout else "")
    # forward reads and writes one such tensor; backward reads two and writes one
    return Case(name, f"{(rows, width)} bf16", 5 * size(values), variants)


def image_case(count: int, before: int, after: int, device: str, compiles: bool) -> Case:
    """Random crop, resize and color jitter of single frames."""
    images = torch.randint(0, 256, (count, 1, 3, before, before), dtype=torch.uint8, device=device)
    keys = torch.arange(count, device=device)
    boxes, colors = boxes_and_colors(keys, before)
    given: dict[str, Any] = {"size": (after, after), "mean": MEAN, "std": STD, "dtype": torch.bfloat16}
    one_draw = v2.Compose(
        [
            v2.RandomResizedCrop(after, scale=(0.7, 1.0)),
            v2.ToDtype(torch.float32, scale=True),
            v2.ColorJitter(0.3, 0.3, 0.3, 0.05),
            v2.Normalize(MEAN, STD),
            v2.ToDtype(torch.bfloat16),
        ]
    )
    frames = images[:, 0]
    variants: dict[str, Run] = {
        "reference": lambda: image_batch.reference(images, boxes, colors, **given),
        "torchvision, one draw a batch": lambda: one_draw(frames),
        "torchvision, sample by sample": lambda: torch.stack([one_draw(frame) for frame in frames]),
        "draws alone": lambda: boxes_and_colors(keys, before),
    }
    if compiles:
        compiled = torch.compile(image_batch.reference, dynamic=False)
        variants["compiled"] = lambda: compiled(images, boxes, colors, **given)
    if device == "cuda":
        variants["ours"] = lambda: image_batch.image_batch(images, boxes, colors, **given)
        variants["ours, without jitter"] = lambda: image_batch.image_batch(images, boxes, None, **given)
    moved = images.numel() + 2 * count * 3 * after * after
    return Case("images", f"{count} of {before} -> {after}, uint8 -> bf16", moved, variants)


def boxes_and_colors(keys: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Draw boxes (B, 4) of 70 to 100 % of the area, of aspects as torchvision's, and colors (B, 4), by keys (B,)."""
    draws = Draws({SAMPLE_KEY: keys}, keys, "benchmark")
    areas, ratios = draws.uniform(1, 0.7, 1.0), draws.uniform(1, math.log(3 / 4), math.log(4 / 3)).exp()
    sizes = (areas * torch.cat([1.0 / ratios, ratios], 1)).sqrt().clamp_max(1.0) * side
    corners = draws.uniform(2) * (side - sizes)
    colors = torch.cat([draws.uniform(3, 0.7, 1.3), draws.uniform(1, -0.05, 0.05)], 1)
    return torch.cat([corners, sizes], 1), colors


def adamw_case(tiny: bool, device: str, *, eight_bit: bool = False) -> Case:
    """Build a step of AdamW over the parameters of ViT-B/16, with weight average and bfloat16 copy, or all moments in eight bits."""
    width, depth = (8, 1) if tiny else (768, 12)
    shapes = [(width, 3, 16, 16), (width,), (1, 1, width), (1, 197, width), (width,), (width,)]
    for _ in range(depth):
        for rows, columns in ((3, 1), (1, 1), (4, 1), (1, 4)):
            shapes += [(rows * width, columns * width), (rows * width,)]
        shapes += [(width,)] * 4
    parameters = [torch.randn(shape, device=device) for shape in shapes]
    gradients = [torch.randn_like(p) for p in parameters]
    first, second = ([torch.rand_like(p) for p in parameters] for _ in range(2))
    scales: tuple[list[Tensor], list[Tensor]] = ([], [])
    if eight_bit:
        for moments, powers, squared in ((first, scales[0], False), (second, scales[1], True)):
            for index, moment in enumerate(moments):
                codes, power = encode(moment.flatten(), squared=squared)
                moments[index] = codes.view(moment.shape)
                powers.append(power)
    averages = [p.clone() for p in parameters]
    shadows = [p.bfloat16() for p in parameters]
    step, clip, bad = (torch.tensor(value, device=device) for value in (10.0, 0.5, 0.0))
    rates, decays = (torch.tensor([value], device=device) for value in (1e-4, 1e-2))
    groups = [0] * len(parameters)
    leaves = [p.clone().requires_grad_() for p in parameters]
    for parameter, gradient in zip(leaves, gradients, strict=True):
        parameter.grad = gradient.clone()
    fused: Any = torch.optim.AdamW(
        leaves, lr=1e-4, weight_decay=1e-2, fused=True, capturable=device == "cuda"
    )
    fused.grad_scale, fused.found_inf = torch.ones((), device=device), bad

    @torch.no_grad()
    def of_torch() -> None:
        fused.step()
        torch._foreach_lerp_(averages, leaves, 1e-3)
        torch._foreach_copy_(shadows, leaves)

    plain = (parameters, gradients, first, second, averages, shadows, step, rates, decays, groups, clip, bad)
    variants: dict[str, Run] = {
        "reference": lambda: adamw.reference(*plain, 0.9, 0.999, 1e-8, 0.999, *scales),
    }
    if not eight_bit:
        variants |= {"fused AdamW + lerp + copy": of_torch, "fused AdamW alone": fused.step}
    if device == "cuda":
        variants["ours"] = lambda: adamw.adamw_step(
            parameters, gradients, first, second, step, rates, decays, groups,
            averages=averages, shadows=shadows, first_scales=scales[0], second_scales=scales[1], clip=clip, found_inf=bad,
        )  # fmt: skip
    count = sum(p.numel() for p in parameters)
    # moments are read and written, as are weights and their average; gradients are read, copies written
    moved = 22 * count + 2 * sum(size(x) for x in (*first, *second, *scales[0], *scales[1]))
    name = "AdamW, average, copy" + (", moments in 8 bits" if eight_bit else "")
    return Case(name, f"{len(shapes)} tensors, {count / 1e6:.1f}M values", moved, variants)


def differentiated(
    reference: Callable[..., Any],
    ours: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    against: Any,
    device: str,
    compiles: bool,
) -> dict[str, Run]:
    """Forward and backward of the reference, of itself compiled, and of ours."""
    leaves = [x for x in inputs if x.requires_grad]

    def run(function: Callable[..., Any]) -> Run:
        return lambda: torch.autograd.grad(function(*inputs), leaves, against)

    variants = {"reference": run(reference)}
    if compiles:
        variants["compiled"] = run(torch.compile(reference, dynamic=False))
    if device == "cuda":
        variants["ours"] = run(ours)
    return variants


def leaf(device: str, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).bfloat16().requires_grad_()


def size(values: Tensor) -> int:
    return values.numel() * values.element_size()


if __name__ == "__main__":
    main()
