"""Trackers of `training.track`: the log of a run in TensorBoard, Weights & Biases, trackio or MLflow.

accelerate has the classes of the trackers. Each works in a thread of its own, so that a slow server never
makes a step wait. One that fails is left out with a single warning.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from accelerate.tracking import MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from ....schemas.errors import TrainingError
from ... import runs

PATIENCE = 60.0
"""Seconds that the end of a run waits for a tracker."""
_logger = logging.getLogger(__name__)


class Trackers:
    """A reporter to trackers, by name. A resumed run goes on in the same remote runs.

    The project of a remote run is named like the recipe, and the run like its directory.
    """

    def __init__(self, names: Sequence[str], run: Path, recipe: Mapping[str, Any], recipe_text: str) -> None:
        """Report the run in a directory, with its resolved recipe and the text of it."""
        self._names, self._run, self._recipe, self._text = names, run, recipe, recipe_text
        self._sinks: list[_Sink] = []
        self._open = contextlib.ExitStack()

    def start(self, step: int, steps: int) -> None:
        """Start the trackers. Raise TrainingError if one cannot start a new run; a resumed one goes on without."""
        if not self._names:
            return
        self._open.enter_context(_short_thread_errors())
        identities = self._identities()
        for name in self._names:
            sink = _Sink(name, partial(_KINDS[name], self, identities, step))
            if sink.problem:
                message = f"{name} cannot start ({sink.problem})"
                if step == 0:
                    self.close()
                    raise TrainingError(
                        f"{message}; set it up, or take it out of `training.track` (see docs/tracking.md)"
                    )
                _logger.warning("%s; the run continues without it", message)
                continue
            self._sinks.append(sink)
        self._keep(identities)

    def advance(self, step: int) -> None:
        """Report nothing."""

    def log(self, step: int, values: dict[str, float]) -> None:
        for sink in self._sinks:
            sink.send(values, step)

    def note(self, message: str) -> None:
        """Report nothing; notes are in the log of the run."""

    def close(self) -> None:
        """Finish what the trackers have to send, for at most a minute."""
        for sink in self._sinks:
            sink.close()
        self._open.close()

    def project(self, variable: str) -> str:
        """Return the project in an environment variable, by default the name of the recipe."""
        return os.environ.get(variable) or str(self._recipe["name"])

    @property
    def title(self) -> str:
        """The name of the run, that of its directory."""
        return self._run.absolute().name

    @property
    def directory(self) -> Path:
        """The directory of the run."""
        return self._run

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved recipe."""
        return dict(self._recipe)

    @property
    def text(self) -> str:
        """The recipe as it is written to the run."""
        return self._text

    def _identities(self) -> dict[str, str]:
        """Return the remote runs of this run, by tracker."""
        try:
            found = json.loads((self._run / runs.TRACKING).read_text())
        except (OSError, ValueError):
            return {}
        return {str(name): str(one) for name, one in found.items()} if isinstance(found, dict) else {}

    def _keep(self, identities: Mapping[str, str]) -> None:
        if identities:
            with contextlib.suppress(OSError):  # a resumed run then begins another remote run
                (self._run / runs.TRACKING).write_text(json.dumps(identities, indent=2) + "\n")


Log = Callable[[dict[str, float], int], None]


def _tensorboard(run: Trackers, identities: dict[str, str], step: int) -> tuple[Log, Callable[[], None]]:
    """Return functions to log and to finish. Points after `step`, of a run that was killed, are hidden."""
    tracker = TensorBoardTracker(
        runs.TENSORBOARD, logging_dir=run.directory, purge_step=step + 1 if step else None
    )
    tracker.start()
    fenced = "\n".join(f"    {line}" for line in run.text.splitlines())
    tracker.log({"recipe": fenced}, step=step)
    return tracker.log, tracker.finish


def _wandb(run: Trackers, identities: dict[str, str], step: int) -> tuple[Log, Callable[[], None]]:
    one = identities.setdefault("wandb", uuid.uuid4().hex[:8])
    tracker = WandBTracker(
        run.project("WANDB_PROJECT"), name=run.title, id=one, resume="allow", dir=str(run.directory)
    )
    tracker.start()
    tracker.tracker.define_metric("*", step_metric="step")  # values of an evaluation arrive late
    tracker.store_init_configuration(run.settings)
    return lambda values, step: tracker.log({"step": step, **values}), tracker.finish


def _trackio(run: Trackers, identities: dict[str, str], step: int) -> tuple[Log, Callable[[], None]]:
    one = identities.setdefault("trackio", f"{run.title}-{uuid.uuid4().hex[:8]}")
    tracker = TrackioTracker(
        run.project("TRACKIO_PROJECT"), name=one, resume="allow", config=_flat(run.settings)
    )
    tracker.start()
    return tracker.log, tracker.finish


def _mlflow(run: Trackers, identities: dict[str, str], step: int) -> tuple[Log, Callable[[], None]]:
    tracker = MLflowTracker(
        run.project("MLFLOW_EXPERIMENT_NAME"), run_id=identities.get("mlflow"), run_name=run.title
    )
    tracker.start()
    if "mlflow" not in identities:  # parameters of an MLflow run never change
        identities["mlflow"] = tracker.tracker.info.run_id
        tracker.store_init_configuration(_flat(run.settings))
    tracker.log_artifact(str(run.directory / runs.RECIPE))
    return tracker.log, tracker.finish


_KINDS: dict[str, Callable[[Trackers, dict[str, str], int], tuple[Log, Callable[[], None]]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}


class _Sink:
    """A tracker in a thread of its own, which it never leaves: MLflow knows its run by the thread."""

    def __init__(self, name: str, start: Callable[[], tuple[Log, Callable[[], None]]]) -> None:
        """Start the tracker; `problem` is the reason if that fails."""
        self._name, self.problem = name, ""
        self._waiting: SimpleQueue[tuple[dict[str, float], int] | None] = SimpleQueue()
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._work, args=(start, started), name=f"tracker {name}", daemon=True
        )
        self._thread.start()
        started.wait()

    def send(self, values: Mapping[str, float], step: int) -> None:
        """Send values, some time later."""
        self._waiting.put((dict(values), step))

    def close(self) -> None:
        """Wait for all values to be sent."""
        self._waiting.put(None)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            _logger.warning("%s does not answer; its last values are missing", self._name)

    def _work(self, start: Callable[[], tuple[Log, Callable[[], None]]], started: threading.Event) -> None:
        try:
            log, finish = start()
        except BaseException as error:  # noqa: BLE001  (a tracker may even exit)
            self.problem = _reason(error)
            return
        finally:
            started.set()
        try:
            while (sent := self._waiting.get()) is not None:
                log(*sent)
            finish()
        except BaseException as error:  # noqa: BLE001
            _logger.warning(
                "%s failed (%s); the run continues without it, and its log is complete in %s",
                self._name,
                _reason(error),
                runs.LOG,
            )


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted keys."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


@contextlib.contextmanager
def _short_thread_errors() -> Iterator[None]:
    """Report an OSError in TensorBoard's thread in one line while the context is active."""
    hook = threading.excepthook

    def report(failed: threading.ExceptHookArgs) -> None:
        if isinstance(failed.exc_value, OSError) and type(failed.thread).__name__ == "_AsyncWriterThread":
            reason = failed.exc_value.strerror or failed.exc_value
            _logger.warning("points for TensorBoard cannot be written (%s)", reason)
        else:
            hook(failed)

    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = hook
