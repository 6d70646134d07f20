"""Time of attention, forward and backward, by each of torch's backends, beside the one that torch takes by itself.

    python benchmarks/attention.py --output benchmarks/results/attention.json

`gpu_ms` as in `kernels.py`, in bfloat16, for the shapes of this project's policies. The trainer leaves the choice to torch,
which makes it for every shape; here it shows what another choice would gain.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timing import machine, measure
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = {
    "ViT-B/16, batch 256": (256, 12, 197, 197, 64, False),
    "SigLIP-So400m/14, 64 images": (64, 16, 256, 256, 72, False),
    "ACT encoder, batch 8": (8, 8, 100, 100, 64, False),
    "ACT encoder, batch 64": (64, 8, 100, 100, 64, False),
    "GR00T head, batch 32, self": (32, 32, 49, 49, 48, False),
    "GR00T head, batch 256, self": (256, 32, 49, 49, 48, False),
    "GR00T head, batch 256, cross": (256, 32, 49, 160, 48, True),
    "pi0 prefix, batch 8": (8, 8, 816, 816, 256, True),
    "pi0 actions, batch 8": (8, 8, 51, 867, 256, True),
}
"""Batch, heads, queries, keys, width of a head, and whether there is a mask."""
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="one tiny shape")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    shapes = {"tiny": (2, 2, 5, 7, 8, True)} if arguments.tiny else SHAPES
    for name, shape in shapes.items():
        attend = attention(*shape, device=arguments.device)
        times: dict[str, float | None] = {"torch's choice": measure(attend, arguments.device)[0]}
        for backend, kind in BACKENDS.items():
            with sdpa_kernel(kind):
                try:
                    times[backend] = measure(attend, arguments.device)[0]
                except RuntimeError:  # not made for this shape
                    times[backend] = None
        rows += [{"work": name, "shape": shape, "backend": b, "gpu_ms": time} for b, time in times.items()]
        line = "  ".join(f"{b} {'-' if time is None else format(time, '.3f')}" for b, time in times.items())
        sys.stdout.write(f"{name:30} {line} ms\n")
        sys.stdout.flush()
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        result = {"what": __doc__, "machine": machine(), "rows": rows}
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def attention(
    batch: int, heads: int, queries: int, keys: int, width: int, masked: bool, *, device: str
) -> Callable[[], Any]:
    """Attention and its gradients over tensors laid out as projections leave them, (B, N, heads, width)."""

    def leaf(count: int) -> torch.Tensor:
        return torch.randn(batch, count, heads, width, device=device).bfloat16().requires_grad_()

    q, k, v, against = leaf(queries), leaf(keys), leaf(keys), leaf(queries).detach().transpose(1, 2)
    mask = torch.rand(batch, 1, queries, keys, device=device) < 0.9 if masked else None

    def run() -> Any:
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return torch.autograd.grad(
            F.scaled_dot_product_attention(*heads_first, attn_mask=mask), [q, k, v], against
        )

    return run


if __name__ == "__main__":
    main()
