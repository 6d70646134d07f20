"""Time of attention, forward and backward, for each of torch's backends, for torch's own choice of one, and for ours.

    python benchmarks/attention.py --output benchmarks/results/attention.json

`gpu_ms` as in `kernels.py`, in bfloat16, for the shapes of this project's policies. Masks are of keys, but for pi0's. Keys
and values are apart, or halves of one projection. Ours is for up to 256 queries in heads of up to 64 numbers; elsewhere,
the trainer leaves the choice to torch, which makes it for every shape.
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

from policysmith.components.kernels import attention as kernel

SHAPES = {
    "ViT-B/16, batch 256": (256, 12, 197, 197, 64, "", False),
    "SigLIP-So400m/14, 64 images": (64, 16, 256, 256, 72, "", False),
    "ACT encoder, batch 8": (8, 8, 100, 100, 64, "", False),
    "ACT encoder, batch 64": (64, 8, 100, 100, 64, "", False),
    "GR00T head, batch 32, self": (32, 32, 49, 49, 48, "keys", True),
    "GR00T head, batch 256, self": (256, 32, 49, 49, 48, "keys", True),
    "GR00T head, batch 256, 160 tokens": (256, 32, 49, 160, 48, "keys", True),
    "GR00T head, batch 8, 600 tokens": (8, 32, 49, 600, 48, "", True),
    "GR00T head, batch 256, 600 tokens": (256, 32, 49, 600, 48, "", True),
    "pi0 prefix, batch 8": (8, 8, 816, 816, 256, "all", False),
    "pi0 actions, batch 8": (8, 8, 51, 867, 256, "all", False),
}
"""Batch, heads, queries, keys, width of a head, kind of mask, and True if keys and values are one tensor."""
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
    shapes = {"tiny": (2, 2, 5, 7, 8, "keys", True)} if arguments.tiny else SHAPES
    for name, shape in shapes.items():
        attend = attention(*shape, device=arguments.device)
        times: dict[str, float | None] = {"torch's choice": measure(attend, arguments.device)[0]}
        for backend, kind in BACKENDS.items():
            with sdpa_kernel(kind):
                try:
                    times[backend] = measure(attend, arguments.device)[0]
                except RuntimeError:  # not made for this shape
                    times[backend] = None
        ours = attention(*shape, device=arguments.device, ours=True)
        times["ours"] = None if ours is None else measure(ours, arguments.device)[0]
        rows += [{"work": name, "shape": shape, "backend": b, "gpu_ms": time} for b, time in times.items()]
        line = "  ".join(f"{b} {'-' if time is None else format(time, '.3f')}" for b, time in times.items())
        sys.stdout.write(f"{name:30} {line} ms\n")
        sys.stdout.flush()
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        result = {"what": __doc__, "machine": machine(), "rows": rows}
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def attention(
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    width: int,
    masked: str,
    packed: bool,
    *,
    device: str,
    ours: bool = False,
) -> Callable[[], Any] | None:
    """Build attention and its gradients over tensors laid out like the output of projections, (B, N, heads, width).

    Return None if ours does not support such shapes.
    """

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, heads, width, device=device).bfloat16().requires_grad_()

    query, against = leaf(queries), leaf(queries).detach()
    given = [leaf(keys, 2)] if packed else [leaf(keys), leaf(keys)]
    seen = torch.rand(batch, keys, device=device) < 0.9
    allowed = {"": None, "keys": seen[:, None, None], "all": seen[:, None, None].expand(-1, 1, queries, -1)}[
        masked
    ]

    def of_torch() -> torch.Tensor:
        key, value = given[0].unbind(2) if packed else given
        heads_first = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(*heads_first, attn_mask=allowed).transpose(1, 2)

    def of_ours() -> torch.Tensor:
        return kernel.attention(query, given[0], *given[1:], seen=seen if masked else None)

    if ours and (masked == "all" or (device == "cuda" and not kernel.serves(query, given[0]))):
        return None
    return lambda: torch.autograd.grad((of_ours if ours else of_torch)(), [query, *given], against)


if __name__ == "__main__":
    main()
