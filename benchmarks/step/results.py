"""Numbers from blocks and losses, and their table."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

REFERENCE, OURS = "trainer", "ours"


def timed(
    result: Mapping[str, Any], row: Mapping[str, Any], machine: Mapping[str, Any], log_every: int
) -> dict[str, Any]:
    """Return speed and share of the device's peak, from the blocks of a trainer."""
    survey, blocks = row.get("survey", {}), result["blocks_ms"]
    median = statistics.median(blocks)
    found: dict[str, Any] = {
        "ms_per_step": {"median": median, "min": min(blocks), "max": max(blocks)},
        "samples_per_second": {
            "median": 1e3 * row["batch"] / median,
            "min": 1e3 * row["batch"] / max(blocks),
            "max": 1e3 * row["batch"] / min(blocks),
        },
        "preparation_seconds": result["first_seconds"] - log_every * median / 1e3,
    }
    if survey and machine:
        tflops, peak = survey["flops"]["step"] / median / 1e9, machine["peak_tflops"]
        found |= {"tflops": tflops, "of_gemm": tflops / machine["gemm"]["tflops"]}
        found["mfu"] = tflops / peak if peak else None
    return found


def compared(row: Mapping[str, Any]) -> dict[str, Any]:
    """Compare every trainer with the reference, and ours with the goals."""
    variants = row["variants"]
    reference = variants.get(REFERENCE, {})
    for result in variants.values():
        if "ms_per_step" in reference and "ms_per_step" in result:
            result["speedup"] = reference["ms_per_step"]["median"] / result["ms_per_step"]["median"]
        if "losses" in reference and "losses" in result:
            result["loss_difference"] = difference(result["losses"], reference["losses"])
    ours = variants.get(OURS, {})
    values = {"speedup": ours.get("speedup"), "tflops": ours.get("tflops"), "ceiling": ours.get("of_gemm")}
    return {
        "reached": {
            name: None if values[name] is None else values[name] >= goal
            for name, goal in row["goals"].items()
        }
    }


def difference(losses: list[float], others: list[float]) -> float | None:
    """Return the largest relative difference between two curves."""
    pairs = zip(losses, others, strict=False)
    return max((abs(a - b) / max(abs(b), 1e-12) for a, b in pairs), default=None)


def table(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a work."""
    yield f"{row['name']}: {row['title']}, batch {row['batch']}"
    if survey := row.get("survey"):
        flops = survey["flops"]
        yield (
            f"  {survey['parameters'] / 1e6:,.1f} M parameters, {survey['trained_parameters'] / 1e6:,.1f} M trained; "
            f"{flops['step'] / 1e12:.3g} TFLOP a step, {flops['forward'] / max(flops['step'], 1):.0%} of it forward, "
            f"{flops['frozen_backbones'] / max(flops['step'], 1):.0%} in frozen backbones"
        )
    yield (
        f"  {'':16} {'ms/step':>9} {'(min to max)':>17} {'samples/s':>10} {'TFLOP/s':>8} {'MFU':>5} {'of GEMM':>7} "
        f"{'GiB':>6} {'prepare':>8} {'speed':>7} {'loss differs':>12}"
    )
    for name, result in row["variants"].items():
        if "ms_per_step" in result:
            yield _line(name, result)
    for name, reason in row["left_out"].items():
        yield f"  {name:16} left out: {reason}"
    if not row["blocks_alternate"]:
        yield "  one trainer after the other: the device does not hold all at once"
    yield from _goals(row)


def _line(name: str, result: Mapping[str, Any]) -> str:
    ms, peak = result["ms_per_step"], result["peak_bytes"]
    spread = f"({ms['min']:.2f} to {ms['max']:.2f})"
    cells = [
        f"  {name:16} {ms['median']:9.2f} {spread:>17} {result['samples_per_second']['median']:10,.0f}",
        _shown(result.get("tflops"), "8.3g"),
        _shown(result.get("mfu"), "5.0%"),
        _shown(result.get("of_gemm"), "7.0%"),
        _shown(None if peak is None else peak / 2**30, "6.1f"),
        f"{result['preparation_seconds']:6.1f} s",
        _shown(result.get("speedup"), "6.2f") + "x",
        _shown(result.get("loss_difference"), "12.1e"),
    ]
    return " ".join(cells)


def _goals(row: Mapping[str, Any]) -> Iterator[str]:
    ours = row["variants"].get(OURS, {})
    forms = {
        "speedup": ("speedup", "{:.2f}x of `trainer`"),
        "tflops": ("tflops", "{:.3g} TFLOP/s"),
        "ceiling": ("of_gemm", "{:.0%} of the matrix product"),
    }
    words = {True: "reached", False: "missed", None: "not measured"}
    for name, goal in row["goals"].items():
        key, form = forms[name]
        value = "-" if ours.get(key) is None else form.format(ours[key])
        yield f"  goal {form.format(goal)} or more: {value}, {words[row['reached'][name]]}"


def _shown(value: float | None, form: str) -> str:
    width = int(form.split(".")[0])
    return f"{'-':>{width}}" if value is None else f"{value:{form}}"
