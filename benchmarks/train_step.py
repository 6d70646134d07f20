"""Time of a training step: this project's trainer beside transformers.Trainer and a loop like LeRobot's.

    python benchmarks/train_step.py --works vit_b act_8 --output benchmarks/results/train_step.json

Every trainer trains the same policy, from the same weights, on the same batches, which are on the device already, with
the same precision, clipping, AdamW settings, learning rates and weight average. The policy's transforms are torch's own
operations, except in ours, which may use kernels of this project:

    trainer           transformers.Trainer unchanged: eager, bf16, AdamW not fused, cosine
    trainer_compile   the same with torch_compile=True
    trainer_liger     the first with use_liger_kernel=True, if Liger is installed and replaces any module
    lerobot_like      accelerate, eager, loss and gradient norm read in every step, average tensor by tensor
    ours              policysmith.builder.training.loop.train with its defaults

Each has its own process, and one at a time computes. First come the compared steps, from the same seeds: their losses must
agree up to rounding, and up to the noise of compiled dropout. Then blocks of timed steps alternate, A B C D, A B C D; the
device is waited for only at the ends of a block. `prepare` is the extra time of the first steps, mostly compilation. A
`--tiny` run shows that everything works, and nothing about speed.

Results are written after every block. With `--budget` no block begins after so many seconds.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from step.comparison import Session
from step.results import table
from step.workloads import WORKS, choose

VARIANTS = ("trainer", "trainer_compile", "trainer_liger", "lerobot_like", "ours")
TINY = {"loss_steps": 6, "rounds": 2, "warmup": 1, "steps": 2, "log_every": 2}


def main() -> None:
    arguments = parse()
    if arguments.list:
        for work in choose([], arguments.tiny):
            goals = ", ".join(f"{k} {v:g}" for k, v in vars(work.goals).items() if v is not None)
            tell(f"{work.name:16} {work.title}, batch {work.batch}; goals: {goals}")
        return
    try:
        works = choose(arguments.works, arguments.tiny)
    except KeyError as unknown:
        raise SystemExit(f"unknown work {unknown}; `--list` shows all") from None
    session = session_of(arguments)
    rows: list[dict[str, Any]] = []
    for index, work in enumerate(works):
        keep = partial(write, arguments, session, rows, [other.name for other in works[index + 1 :]])
        if session.over:
            tell(f"{work.name}: not begun, out of time")
        else:
            rows.append(session.measure(work, keep))
            tell("\n".join(table(rows[-1])))
    write(arguments, session, rows, [work.name for work in works[len(rows) :]])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--works", nargs="+", default=[], metavar="WORK", help=f"of {', '.join(WORKS)}; all")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS, help="trainers; all")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="the best available by default")
    parser.add_argument("--tiny", action="store_true", help="small policies and few steps, for a trial")
    parser.add_argument("--list", action="store_true", help="show the works and their goals")
    for name in TINY:
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, metavar="N", help="see `step/protocol.py`")
    parser.add_argument(
        "-o", "--override", action="append", default=[], metavar="KEY=VALUE", help="change every recipe"
    )
    return parser.parse_args()


def session_of(arguments: argparse.Namespace) -> Session:
    began = time.monotonic()
    from step.protocol import Protocol  # after the clock started: it imports torch
    from torch.cuda import is_available

    counts = dict(TINY) if arguments.tiny else {}
    counts |= {name: value for name in TINY if (value := getattr(arguments, name)) is not None}
    try:
        protocol = Protocol(**counts)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    return Session(
        protocol=protocol,
        variants=arguments.variants,
        device=arguments.device or ("cuda" if is_available() else "cpu"),
        changes=arguments.override,
        gemm=256 if arguments.tiny else 8192,
        deadline=began + arguments.budget,
        tell=tell,
    )


def write(
    arguments: argparse.Namespace,
    session: Session,
    rows: list[dict[str, Any]],
    later: list[str],
    begun: dict[str, Any] | None = None,
) -> None:
    """Write the rows of all works into the file, including one that has only begun."""
    if arguments.output is None:
        return
    content = {
        "what": (__doc__ or "").splitlines()[0],
        "command": f"python benchmarks/train_step.py {shlex.join(sys.argv[1:])}",
        "tiny": arguments.tiny,
        "device": session.device,
        **session.machine,
        "protocol": vars(session.protocol),
        "works": rows if begun is None else [*rows, begun],
        "not_begun": later,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    aside = arguments.output.with_suffix(".part")
    aside.write_text(json.dumps(content, indent=2) + "\n")
    aside.replace(arguments.output)


def tell(message: str) -> None:
    sys.stdout.write(f"{message}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
