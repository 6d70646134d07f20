"""Time from an observation to an action chunk at batch 1: eager as built, eager in the engine's precision, the engine.

    python benchmarks/inference.py --output benchmarks/results/inference.json

Policies have random weights and the shapes of their recipes. Times run from observations on the host to actions on the
host, in milliseconds. LeRobot's `select_action`, which computes a chunk after each reset, is timed where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from step.synthetic import SyntheticBuilder
from step.workloads import Work, act, diffusion_unet, gr00t_dit, pi0_full, vit_b
from timing import machine

from policysmith.builder.inference.bench import bench

GOALS = {
    "act": 1.0,
    "pi0": 15.0,
    "gr00t_dit": 4.0,
    "diffusion_100": 150.0,
    "diffusion_10": 16.0,
    "vit_b": 1.2,
}


def works(tiny: bool) -> dict[str, Work]:
    """Return the policies by name."""
    unet = diffusion_unet(tiny)[0]
    ddpm = {"policy.head.sampler": "ddpm", "policy.head.steps": None}
    ddim = {"policy.head.sampler": "ddim", "policy.head.steps": 10}
    return {
        "act": act(tiny)[0],
        "vit_b": vit_b(tiny)[0],
        "gr00t_dit": gr00t_dit(tiny)[0],
        "diffusion_10": replace(unet, title=f"{unet.title}, 10 steps").changed(ddim),
        "diffusion_100": replace(unet, title=f"{unet.title}, 100 steps").changed(ddpm),
        "pi0": pi0_full(tiny)[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--works", nargs="+", choices=[*GOALS], default=[*GOALS])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--compile", nargs="*", choices=[*GOALS], default=[], help="also compile these")
    parser.add_argument("--tiny", action="store_true", help="tiny policies, whose times say nothing")
    parser.add_argument("--budget", type=float, help="seconds after which no work begins")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    start = time.perf_counter()
    results: dict[str, Any] = {"machine": machine(), "versions": versions(), "works": {}}
    for name, work in works(arguments.tiny).items():
        if name not in arguments.works:
            continue
        if arguments.budget is not None and time.perf_counter() - start > arguments.budget:
            results["works"][name] = {"title": work.title, "left_out": "out of time"}
            continue
        results["works"][name] = measured(name, work, arguments)
        if arguments.output:
            arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def measured(name: str, work: Work, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time one policy, and print what was found."""
    torch.manual_seed(0)
    began = time.perf_counter()
    policy = SyntheticBuilder.of(work).build(arguments.device).eval()
    repeats = max(5, arguments.repeats // (5 if name in ("pi0", "diffusion_100") else 1))
    found: dict[str, Any] = {"title": work.title, "goal_ms": GOALS[name], "ways": []}
    for compiled in (False, True) if name in arguments.compile else (False,):
        report = bench(policy, arguments.device, repeats=repeats, compile=compiled, eager=not compiled)
        found["ways"] += report.to_json()["rows"]
        show(f"{work.title} (goal {GOALS[name]:g} ms)", *report.lines)
    found["lerobot"] = lerobot(name, arguments.device, repeats) or "absent"
    show(f"LeRobot: {found['lerobot']}", f"{time.perf_counter() - began:.0f} s", "")
    return found


def lerobot(name: str, device: str, repeats: int) -> dict[str, float] | None:
    """Time `select_action` of LeRobot's policy of the same shapes; None without one or without LeRobot."""
    if name not in ("act", "diffusion_100") or importlib.util.find_spec("lerobot") is None:
        return None
    from lerobot.configs.types import FeatureType, PolicyFeature

    def spec(kind: Any, *shape: int) -> Any:
        return PolicyFeature(type=kind, shape=shape)

    if name == "act":
        from lerobot.policies.act.configuration_act import ACTConfig
        from lerobot.policies.act.modeling_act import ACTPolicy

        cameras = {
            f"observation.images.{camera}": spec(FeatureType.VISUAL, 3, 224, 224)
            for camera in ("front", "wrist")
        }
        config = ACTConfig(
            input_features={**cameras, "observation.state": spec(FeatureType.STATE, 14)},
            output_features={"action": spec(FeatureType.ACTION, 14)},
            pretrained_backbone_weights=None,
            device=device,
        )
        policy = ACTPolicy(config)
    else:
        return None
    policy.to(device).eval()
    batch = {
        key: torch.rand(1, *feature.shape, device=device) for key, feature in config.input_features.items()
    }

    def run() -> Any:
        policy.reset()
        return policy.select_action(dict(batch)).cpu()

    return timed(run, repeats)


def timed(run: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Return median and p99 of the wall time of a call that waits for the device."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return {
        "median": statistics.median(times),
        "p99": sorted(times)[min(len(times) - 1, int(0.99 * len(times)))],
    }


def versions() -> dict[str, str]:
    """Return the versions of what the times depend on."""
    found = {}
    for package in ("torch", "triton", "transformers", "lerobot"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def show(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
