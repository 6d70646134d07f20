"""Flags of the verbs about demonstrations and their decoded frames."""

from __future__ import annotations

from .parser import Parser, count, positive, spread

GROUP = "data"
_MODULE = "builder.data_commands"


def add(parser: Parser) -> None:
    """Add `data` and `cache`, and their verbs."""
    _add_data(parser)
    _add_cache(parser)


def _add_data(parser: Parser) -> None:
    data = parser.add_verb(
        GROUP,
        "data",
        "",
        "record, describe, check, edit or convert demonstrations",
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
        module=_MODULE,
    )
    info.add_argument("path", help="directory of a LeRobot dataset")
    stats = data.add_verb(
        GROUP,
        "stats",
        "data_stats",
        "print the range and the spread of every dimension, without decoding videos",
        "policysmith data stats recipes/datasets/drawer_open --plot stats.png",
        module=_MODULE,
    )
    stats.add_argument("path", help="directory of a LeRobot dataset")
    stats.add_argument("--plot", metavar="FILE", help="write histograms to this image, PDF or SVG")
    check = data.add_verb(
        GROUP,
        "check",
        "data_check",
        "find faults in a dataset, and what trains badly; exits with 4 for errors, 1 for warnings",
        "policysmith data check recipes/datasets/drawer_open",
        module=_MODULE,
    )
    check.add_argument("path", help="directory of a LeRobot dataset")
    check.add_argument(
        "--every-frame", action="store_true", help="decode all frames, not three of each video"
    )
    convert = data.add_verb(
        GROUP,
        "convert",
        "data_convert",
        "convert HDF5 of robomimic or ACT, or zarr of Diffusion Policy, into a LeRobot dataset",
        "policysmith data convert demo.hdf5 --output datasets/lift --fps 20 --task 'Lift the cube'",
        module=_MODULE,
    )
    convert.add_argument("source", metavar="SOURCE", help=".hdf5 file, directory of them, or .zarr")
    convert.add_argument("--output", metavar="DIR", required=True, help="directory of the new dataset")
    convert.add_argument("--fps", type=positive, required=True, help="frames per second of the recording")
    convert.add_argument("--task", required=True, help="instruction of all episodes")
    edit = data.add_verb(
        GROUP,
        "edit",
        "data_edit",
        "delete, merge or trim episodes, drop columns, rename tasks; always into a new dataset",
        "policysmith data edit recipes/datasets/drawer_open --output shorter --delete 3,7-9 --trim-end 5",
        "policysmith data edit monday tuesday --output week",
        module=_MODULE,
    )
    edit.add_argument(
        "path", metavar="SET", nargs="+", help="directory of a LeRobot dataset; several are merged"
    )
    edit.add_argument("--output", metavar="DIR", required=True, help="directory of the new dataset")
    edit.add_argument(
        "--drop", metavar="COLUMN", nargs="+", default=[], help="columns or cameras to leave out"
    )
    edit.add_argument("--keep", metavar="EPISODES", help="episodes to keep, such as 0-19,25 (default: all)")
    edit.add_argument("--delete", metavar="EPISODES", help="episodes to leave out, such as 3,7-9")
    edit.add_argument(
        "--trim-start",
        metavar="N",
        type=count,
        default=0,
        help="frames to leave out at the start of each episode",
    )
    edit.add_argument("--trim-end", metavar="N", type=count, default=0, help="frames to leave out at the end")
    edit.add_argument(
        "--rename-task",
        metavar=("OLD", "NEW"),
        nargs=2,
        action="append",
        default=[],
        help="change an instruction",
    )


def _add_cache(parser: Parser) -> None:
    cache = parser.add_verb(GROUP, "cache", "", "list or clear decoded frames")
    cache.add_verb(
        GROUP,
        "list",
        "cache_list",
        "list decoded files, the least recently used first",
        "policysmith cache list",
        module=_MODULE,
    )
    cache.add_verb(
        GROUP,
        "size",
        "cache_size",
        "show how much the cache holds and may hold",
        "policysmith cache size",
        module=_MODULE,
    )
    clear = cache.add_verb(
        GROUP,
        "clear",
        "cache_clear",
        "remove decoded files that no process uses",
        "policysmith cache clear",
        "policysmith cache clear --keep 50GB",
        module=_MODULE,
    )
    clear.add_argument(
        "--keep", metavar="SIZE", help="size that may stay, the most recently used (default: nothing)"
    )
