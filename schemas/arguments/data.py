"""Flags of the verbs about demonstrations."""

from __future__ import annotations

from .parser import Parser, count, positive, spread

GROUP = "data"


def add(parser: Parser) -> None:
    """Add `data` and its verbs."""
    data = parser.add_verb(
        GROUP,
        "data",
        "",
        "record or describe demonstrations",
    )
    record = data.add_verb(
        GROUP,
        "record",
        "data_record",
        "record demonstrations of a scripted expert in simulation",
        "policysmith data record --env metaworld/drawer-open-v3 --episodes 50 --output drawer_open",
    )
    record.add_argument("--env", required=True, help="environment, such as metaworld/drawer-open-v3")
    record.add_argument("--episodes", type=positive, default=50, help="demonstrations (default: 50)")
    record.add_argument("--output", metavar="DIR", required=True, help="directory of the new dataset")
    record.add_argument(
        "--image-size", type=positive, default=96, help="side of the images in pixels (default: 96)"
    )
    record.add_argument("--seed", type=count, default=0, help="seed of the first episode (default: 0)")
    record.add_argument(
        "--noise", type=spread, default=0.0, help="standard deviation of noise on the actions (default: 0)"
    )
    record.add_argument("--workers", type=positive, default=1, help="simulator processes (default: 1)")
    info = data.add_verb(
        GROUP,
        "info",
        "data_info",
        "describe a dataset",
        "policysmith data info recipes/datasets/drawer_open",
    )
    info.add_argument("path", help="directory of a LeRobot dataset")
