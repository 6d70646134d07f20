"""Terminal output of a run: progress, sizes of the policy, robots."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..schemas.terminal import printable
from .planning.sources import DataSource
from .planning.summary import Summary


class PlainConsole(Console):
    """A console that prints text literally, without markup, emoji codes or escape sequences."""

    def __init__(self) -> None:
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text with control characters replaced. rich calls this for every string it prints."""
        return super().render_str(printable(text), **options)


class PlainFormatter(logging.Formatter):
    """A log formatter that replaces control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for a record."""
        return printable(super().format(record))


class TerminalProgress:
    """A progress bar with the latest loss, speed and data wait; plain lines without a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[latest]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=None, latest="")

    def start(self, step: int, steps: int) -> None:
        """Start the bar at a step of all steps."""
        self._bar.start()
        self._bar.update(self._task, completed=step, total=steps)
        if step:
            self.note(f"resumed at step {step}")

    def advance(self, step: int) -> None:
        """Move the bar to a step."""
        self._bar.update(self._task, completed=step)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Show the values of a log interval. Those of an evaluation arrive alone, and in a note."""
        if "loss" not in values:
            return
        text = f"loss {values['loss']:.4f}  {values['samples_per_second']:,.0f} samples/s  data wait {values['data_wait']:.0%}"
        if "mfu" in values:
            text += f"  MFU {values['mfu']:.0%}"
        if "validation/loss" in values:
            text += f"  validation {values['validation/loss']:.4f}"
        self._bar.update(self._task, latest=text)
        if not self._console.is_terminal:
            self._console.print(f"step {step}  {text}")

    def note(self, message: str) -> None:
        """Print a message above the bar."""
        self._console.print(message)

    def close(self) -> None:
        """Stop the bar."""
        self._bar.stop()


def show_summary(console: Console, summary: Summary) -> None:
    """Print the parts of a policy and their sizes."""
    table = Table(box=None, pad_edge=False)
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("trainable", justify="right")
    table.add_column("output")
    for part, count in summary.parts.items():
        name = part.partition(".")[2]
        published = [
            f"{key} {_dims(spec.dims)}" for key, spec in summary.features.items() if key.split(".")[0] == name
        ]
        output = ", ".join(published) if part != "head" else f"action {_dims(summary.action.dims)}"
        table.add_row(part, f"{count:,}", f"{summary.trains[part]:,}", output)
    console.print(table)
    frozen = summary.parameters - summary.trainable
    console.print(
        f"{summary.parameters:,} parameters, {summary.trainable:,} trainable, {frozen:,} frozen; "
        f"{summary.training_bytes / 2**20:,.0f} MiB for weights, gradients and optimizer",
    )
    for part, layers in summary.adapted.items():
        console.print(f"lora {part}: adapters for {layers} layers, all other weights frozen")
    for pattern, count in summary.frozen.items():
        console.print(f"freeze {pattern}: {count:,} parameters")
    if summary.unused:
        count, names = sum(summary.unused.values()), ", ".join(summary.unused)
        console.print(f"unused: {count:,} parameters do not affect the loss and are frozen: {names}")


def show_robots(console: Console, sources: Sequence[DataSource]) -> None:
    """Print the robots of a policy with their sizes and shares; nothing for a single dataset."""
    if sources[0].name is None:
        return
    table = Table(box=None, pad_edge=False)
    for column in ("robot", "action", "state", "cameras", "training frames", "share of samples"):
        heading = "cameras (H x W)" if column == "cameras" else column
        table.add_column(heading, justify="left" if column in ("robot", "cameras") else "right")
    total = sum(source.weight for source in sources)
    for source in sources:
        height_width = (source.image_size(name) for name in source.cameras)
        cameras = ", ".join(
            f"{name} {h} x {w}" for name, (h, w) in zip(source.cameras, height_width, strict=True)
        )
        cameras += "".join(f"{', ' if cameras else ''}{name} black" for name in sorted(source.absent))
        table.add_row(
            str(source.name) if source.robot == source.name else f"{source.robot} ({source.name})",
            str(source.info.action_dim),
            str(source.info.state_dim or "none"),
            cameras or "none",
            f"{source.frames(source.training):,}",
            f"{source.weight / total:.0%}",
        )
    console.print(table)


def _dims(dims: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(str(dim) for dim in dims) + ")"


def shown(path: Path) -> str:
    """Return a path relative to the working directory if it lies inside."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
