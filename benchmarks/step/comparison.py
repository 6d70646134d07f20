"""The comparison of all trainers on one work: set up, compared by losses, and timed in alternating blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .process import Failed, Variant
from .results import REFERENCE, compared, timed

if TYPE_CHECKING:
    from .protocol import Protocol
    from .workloads import Work

LATE = "out of time"
NEEDS = {"trainer_liger": "liger_kernel"}
"""Packages that a trainer requires."""


@dataclass
class Session:
    """Settings shared by all works of a run."""

    protocol: Protocol
    variants: Sequence[str]
    device: str
    changes: Sequence[str]
    gemm: int
    """Size of the matrices whose product measures the device."""
    deadline: float
    """Value of `time.monotonic()` after which no block begins."""
    tell: Callable[[str], None]
    machine: dict[str, Any] = field(default_factory=dict)
    """Hardware, versions and the rate of that product, reported by the first process."""

    @property
    def over(self) -> bool:
        return time.monotonic() > self.deadline

    def measure(self, work: Work, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Return the row of a work; trainers that failed or were not timed are in `left_out`, with the reason.

        `keep` receives the unfinished row after every block, so that a run that is stopped loses nothing.
        """
        row: dict[str, Any] = {
            "name": work.name,
            "title": work.title,
            "recipe": f"recipes/{work.recipe}",
            "changes": dict(work.changes),
            "batch": work.batch,
            "goals": {name: goal for name, goal in asdict(work.goals).items() if goal is not None},
            "blocks_alternate": work.together,
            "variants": {},
            "left_out": {},
        }
        if missing := [package for package in work.needs if find_spec(package) is None]:
            row["left_out"] = dict.fromkeys(self.variants, f"{', '.join(missing)} is not installed")
            return row
        takes = _Takes(self, work, row, keep)
        names = [name for name in self.variants if takes.possible(name)]
        for group in [names] if work.together else [[name] for name in names]:
            if self.over:
                row["left_out"] |= dict.fromkeys(group, LATE)
                continue
            with takes.running(group):
                takes.compare()
                takes.time()
        return row | compared(row)


class _Takes:
    """The running trainers of a work, and their results so far."""

    def __init__(
        self, session: Session, work: Work, row: dict[str, Any], keep: Callable[[dict[str, Any]], None]
    ) -> None:
        self._session, self._work, self._row, self._kept = session, work, row, keep
        self._live: dict[str, Variant] = {}

    def possible(self, name: str) -> bool:
        """Return whether a trainer's package is installed."""
        package = NEEDS.get(name)
        if package is None or find_spec(package) is not None:
            return True
        self._leave_out(name, f"{package} is not installed")
        return False

    @contextmanager
    def running(self, names: Sequence[str]) -> Iterator[None]:
        """Run the processes of some trainers; the very first one measures the device alone."""
        waiting = [*names]
        try:
            if not self._session.machine:
                self._begin(waiting[:1])
                waiting = waiting[1:]
            self._begin(waiting)
            yield
        finally:
            for variant in self._live.values():
                variant.stop()
            self._live.clear()

    def _begin(self, names: Sequence[str]) -> None:
        session = self._session
        for name in names:
            survey = "survey" not in self._row and not self._live
            gemm = None if session.machine else session.gemm
            self._live[name] = Variant(
                name, self._work, session.protocol, session.device, session.changes, survey, gemm
            )
        for name in names:
            with self._failing(name):
                self._take_in(name, self._live[name].setup())

    def compare(self) -> None:
        """Take the compared steps of every trainer, one trainer after the other."""
        protocol = self._session.protocol
        for name in [*self._live]:
            if self._out_of_time():
                return
            with self._failing(name):
                first = self._live[name].run(protocol.log_every)
                self._live[name].run(protocol.loss_steps - protocol.log_every)
                self._result(name)["first_seconds"] = first
                self._keep(name)
                if (difference := self._result(name).get("loss_difference")) is not None:
                    self._session.tell(
                        f"{self._work.name} {name} losses within {difference:.1e} of {REFERENCE}'s"
                    )

    def time(self) -> None:
        """Take the timed blocks."""
        protocol = self._session.protocol
        for _ in range(protocol.rounds):
            for name in [*self._live]:
                if self._out_of_time():
                    return
                with self._failing(name):
                    self._live[name].run(protocol.warmup)
                    seconds = self._live[name].run(protocol.steps)
                    self._session.tell(
                        f"{self._work.name} {name} {1e3 * seconds / protocol.steps:.2f} ms/step"
                    )
                    self._add(name, seconds)

    def _add(self, name: str, seconds: float) -> None:
        protocol, variant, result = self._session.protocol, self._live[name], self._result(name)
        result["blocks_ms"].append(1e3 * seconds / protocol.steps)
        result["peak_bytes"], result["notes"] = variant.peak, variant.notes
        result |= timed(result, self._row, self._session.machine, protocol.log_every)
        self._keep(name)

    def _keep(self, name: str) -> None:
        protocol = self._session.protocol
        count = protocol.loss_steps // protocol.log_every
        self._result(name)["losses"] = self._live[name].losses[:count]  # some report the last one late
        self._row |= compared(self._row)
        self._kept(self._row)

    def _take_in(self, name: str, description: dict[str, Any]) -> None:
        if "machine" in description:
            self._session.machine = description["machine"]
        if "survey" in description:
            self._row["survey"] = description["survey"]
        self._row["ema"] = description["ema"]
        self._result(name)["build_seconds"] = description["build_seconds"]

    def _result(self, name: str) -> dict[str, Any]:
        result: dict[str, Any] = self._row["variants"].setdefault(name, {"blocks_ms": []})
        return result

    def _out_of_time(self) -> bool:
        if not self._session.over:
            return False
        for name in self._live:
            if not self._result(name)["blocks_ms"]:
                self._row["left_out"].setdefault(name, LATE)
        return True

    def _leave_out(self, name: str, reason: str) -> None:
        self._row["left_out"].setdefault(name, reason)
        self._row["variants"].pop(name, None)

    @contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        """Leave a trainer out if it fails while the context is active."""
        try:
            yield
        except (Failed, OSError) as failure:
            self._session.tell(f"{self._work.name} {name} left out: {failure}")
            self._live.pop(name).stop()
            self._leave_out(name, str(failure))
