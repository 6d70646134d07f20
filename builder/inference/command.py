"""The command `policysmith bench`."""

from __future__ import annotations

import json
import sys
from argparse import Namespace

from ..cli import console, set_up_logging
from ..saved_policy import SavedPolicy, choose_device
from .bench import bench as measure


def bench(args: Namespace) -> int:
    """Run `policysmith bench`."""
    set_up_logging()
    device = choose_device(args.device)
    saved = SavedPolicy.find(args.checkpoint, verify=args.verify)
    saved.run_imports(allowed=args.allow_imports)
    report = measure(
        saved.load(device),
        device,
        args.precision,
        batch=args.batch,
        repeats=args.repeats,
        compile=args.compile,
    )
    if args.format == "json":
        sys.stdout.write(json.dumps(report.to_json(), indent=1) + "\n")
        return 0
    for line in report.lines:
        console.print(line, markup=False)
    return 0


__all__ = ["bench"]
