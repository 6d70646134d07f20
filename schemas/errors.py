"""Errors that this project raises on purpose.

    PolicysmithError
    ├── RecipeError (ValueError)       the recipe is invalid; carries every located diagnostic
    ├── SpecError (ValueError)         two parts do not fit; raised by a part, located by the wiring
    ├── DatasetError (ValueError)      a dataset on disk is missing or damaged, or lacks the requested content
    ├── RegistryError (LookupError)    a part's name is unknown or taken, or its file breaks the rules
    ├── WeightsError (ValueError)      pretrained or saved weights do not fit their model
    ├── CheckpointError (ValueError)   a checkpoint is incomplete, damaged or belongs to another run
    ├── TrainingError (RuntimeError)   training cannot continue: a NaN loss, an empty split
    ├── SimulatorError (RuntimeError)  the simulator or its graphics library is missing or failed
    ├── RobotError (RuntimeError)      a robot cannot be driven by a policy
    └── ServerError (RuntimeError)     a policy server cannot be reached, or refused or lost its client

    Interrupted (KeyboardInterrupt)    a signal stopped the program; not caught by `except Exception`

Each message names the problem, its place and its cure.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .diagnostics import Diagnostic


class PolicysmithError(Exception):
    """Base of all errors raised on purpose."""


class RecipeError(PolicysmithError, ValueError):
    """Raised for an invalid recipe. `diagnostics` holds every finding, sorted by position."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n\n".join(diagnostic.render() for diagnostic in self.diagnostics))

    def __reduce__(self) -> tuple[type[RecipeError], tuple[tuple[Diagnostic, ...]]]:
        """Pickle the diagnostics, so that the error reaches another process whole."""
        return type(self), (self.diagnostics,)


class SpecError(PolicysmithError, ValueError):
    """Raised when a part does not fit its inputs or options.

    Attributes:
        field: Option at fault (dotted, relative to the part), or None for the part as a whole.
        source: Input whose size or kind does not fit, or whose values do not with `trait="range"`.
        label: Short text under the caret.
        help: The cure.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        source: str | None = None,
        trait: Literal["dims", "range"] = "dims",
        label: str = "",
        help: str = "",
    ) -> None:
        self.message, self.field, self.source, self.trait = message, field, source, trait
        self.label, self.help = label, help
        super().__init__(message + (f" ({help})" if help else ""))


class DatasetError(PolicysmithError, ValueError):
    """Raised when a dataset on disk is missing or damaged, or lacks the requested content."""


class RegistryError(PolicysmithError, LookupError):
    """Raised when a part's name is unknown or taken, or its file breaks the rules."""


class WeightsError(PolicysmithError, ValueError):
    """Raised when pretrained or saved weights do not fit their model."""


class CheckpointError(PolicysmithError, ValueError):
    """Raised when a checkpoint is incomplete, damaged or belongs to another run."""


class TrainingError(PolicysmithError, RuntimeError):
    """Raised when training cannot continue."""


class SimulatorError(PolicysmithError, RuntimeError):
    """Raised when the simulator or its graphics library is missing or fails."""


class RobotError(PolicysmithError, RuntimeError):
    """Raised when a robot cannot be driven: its policy is too slow, or an observation or action is broken."""


class ServerError(PolicysmithError, RuntimeError):
    """Raised when a policy server cannot be reached, or refuses or loses its client."""


class Interrupted(KeyboardInterrupt):
    """Raised when SIGINT, SIGTERM or SIGHUP stops the program. `code` is the exit code, 128 + number."""

    def __init__(self, number: int, message: str | None = None) -> None:
        self.number, self.code = number, 128 + number
        default = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        super().__init__(default if message is None else message)
