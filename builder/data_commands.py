"""Commands of `policysmith data` and `policysmith cache`, except for recording."""

from __future__ import annotations

from argparse import Namespace
from datetime import datetime

from ..schemas.paths import expanded
from .data.frames.cache import cache_root
from .data.frames.room import entries, keep_largest, limit, room, size_in_bytes
from .display import PlainConsole

console = PlainConsole()


def data_info(args: Namespace) -> int:
    """Run `policysmith data info`."""
    from .data.lerobot.columns import mapping_hint
    from .data.lerobot.features import ACTION, STATE
    from .data.lerobot.info import inspect as describe

    info = describe(args.path)
    lengths = info.episode_lengths
    console.print(f"LeRobot {info.codebase_version}, {info.fps:g} frames per second")
    console.print(
        f"{len(info.episodes)} episodes of {min(lengths)} to {max(lengths)} frames, {sum(lengths):,} in all"
    )
    lines = [
        f"camera {name}: {height} x {width} (height x width)"
        for name, (height, width) in info.cameras.items()
    ]
    lines += [f"camera {name}: {reason}, cannot be read" for name, reason in info.unreadable.items()]
    lines.append(f"state: {', '.join(info.state_names) or 'none'}")
    lines.append(f"action: {', '.join(info.action_names) or 'none'}")
    lines += [f"column {key}: {text}" for key, text in info.columns.items() if key not in (ACTION, STATE)]
    lines += [f"column {key}: {text}, read only through `data.columns`" for key, text in info.unread.items()]
    lines += [f"part {name}: {text}" for name, text in info.parts.items()]
    for line in [*lines, *(f"task: {task}" for task in info.tasks)]:
        console.print(line)
    for key in (ACTION, STATE):
        if key not in info.columns:
            console.print(f"`{key}` is missing: {mapping_hint(key, info.unread)} in `data`")
    return 0


def data_check(args: Namespace) -> int:
    """Run `policysmith data check`."""
    from .data.doctor.examination import examine
    from .data.doctor.findings import Severity

    found = examine(args.path, every_frame=args.every_frame)
    for finding in found:
        console.print(f"{finding.severity.name.lower()}: {finding.text}\n")
    counts = {severity: sum(f.severity is severity for f in found) for severity in Severity}
    console.print(
        f"{args.path}: {counts[Severity.ERROR]} errors, {counts[Severity.WARNING]} warnings"
        if found
        else f"{args.path} is sound"
    )
    return 4 if counts[Severity.ERROR] else int(bool(found))


def data_convert(args: Namespace) -> int:
    """Run `policysmith data convert`."""
    from .data.writing.convert import convert

    with console.status("converting") as status:
        written = convert(
            expanded(args.source),
            expanded(args.output),
            fps=args.fps,
            task=args.task,
            progress=lambda episodes: status.update(f"converting: {episodes} episodes"),
        )
    console.print(f"{args.output}: {written} episodes")
    return 0


def data_edit(args: Namespace) -> int:
    """Run `policysmith data edit`."""
    from .data.editing.edit import Edits, edit

    edits = Edits(
        tuple(args.drop), args.keep, args.delete, args.trim_start, args.trim_end, dict(args.rename_task)
    )
    with console.status("editing"):
        done = edit([expanded(path) for path in args.path], expanded(args.output), edits)
    console.print(f"{args.output}: {done.episodes} episodes, {done.frames:,} frames")
    console.print(f"{done.copied} videos copied, {done.encoded} episodes of cameras encoded again")
    return 0


def data_stats(args: Namespace) -> int:
    """Run `policysmith data stats`."""
    from .data import statistics_report

    layout, table, statistics = statistics_report.numbers(args.path)
    for line in statistics_report.lines(layout, statistics):
        console.print(line)
    if args.plot:
        statistics_report.plot(layout, table, expanded(args.plot))
        console.print(f"histograms  {args.plot}")
    return 0


def cache_list(args: Namespace) -> int:
    """Run `policysmith cache list`."""
    held = entries(cache_root())
    for entry in held:
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        note = ", in use" if entry.leased else ""
        console.print(
            f"{entry.bytes / 1e6:10,.1f} MB  used {used}{note}  {entry.source}  {entry.directory.name}"
        )
    if not held:
        console.print(f"{cache_root()} is empty")
    return 0


def cache_size(args: Namespace) -> int:
    """Run `policysmith cache size`."""
    root = cache_root()
    held = entries(root)
    console.print(f"{root}: {len(held)} files, {sum(entry.bytes for entry in held) / 1e9:,.3g} GB")
    if root.exists():
        console.print(f"room for {max(room(root, reclaim=False), 0) / 1e9:,.3g} GB more")
    if limit() < float("inf"):
        console.print(f"limit of {limit() / 1e9:,.3g} GB, from POLICYSMITH_CACHE_SIZE")
    return 0


def cache_clear(args: Namespace) -> int:
    """Run `policysmith cache clear`."""
    most = size_in_bytes(args.keep, "--keep") if args.keep else 0.0
    removed = list(keep_largest(cache_root(), most))
    console.print(f"removed {len(removed)} files, {sum(entry.bytes for entry in removed) / 1e9:,.3g} GB")
    left = sum(entry.leased for entry in entries(cache_root()))
    if left:
        console.print(f"{left} files are in use and stay")
    return 0


__all__ = [
    "cache_clear",
    "cache_list",
    "cache_size",
    "data_check",
    "data_convert",
    "data_edit",
    "data_info",
    "data_stats",
]
