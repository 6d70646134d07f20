"""Every error this project raises on purpose.

    PolicysmithError
    ├── RecipeError (ValueError)       the recipe is wrong; carries every located diagnostic
    ├── SpecError (ValueError)         two parts do not fit; raised by a part, located by the wiring
    ├── DatasetError (ValueError)      a dataset on disk is missing, damaged or does not hold what was asked
    ├── RegistryError (LookupError)    a part's name is unknown, taken twice, or its file breaks the rules
    ├── WeightsError (ValueError)      pretrained or saved weights do not fit the model they are meant for
    ├── CheckpointError (ValueError)   a checkpoint is incomplete, damaged or belongs to another run
    ├── TrainingError (RuntimeError)   training cannot go on: a NaN loss, an empty split
    └── SimulatorError (RuntimeError)  the simulator or its graphics library is missing or failed

    Interrupted (KeyboardInterrupt)    a signal stopped the program, which is no error and passes `except Exception`

Each says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .diagnostics import Diagnostic


class PolicysmithError(Exception):
    """Base of every error raised on purpose."""


class RecipeError(PolicysmithError, ValueError):
    """The recipe is wrong. `diagnostics` holds every finding, sorted by position."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n\n".join(diagnostic.render() for diagnostic in self.diagnostics))

    def __reduce__(self) -> tuple[type[RecipeError], tuple[tuple[Diagnostic, ...]]]:
        """Whole in another process too."""
        return type(self), (self.diagnostics,)


class SpecError(PolicysmithError, ValueError):
    """A part cannot be wired as asked.

    `field` names the option of the part at fault (dotted, relative to the part), or is None for the part as
    a whole. `source` names the input whose size or kind does not fit, or with `trait="range"` the one whose values
    do not. `label` is the short text under the caret, `help` the cure.
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
    """A dataset on disk is missing, damaged, or does not hold what was asked of it."""


class RegistryError(PolicysmithError, LookupError):
    """A part's name is unknown or taken twice, or its file breaks the rules."""


class WeightsError(PolicysmithError, ValueError):
    """Pretrained or saved weights do not fit the model they are meant for."""


class CheckpointError(PolicysmithError, ValueError):
    """A checkpoint is incomplete, damaged, or belongs to another run."""


class TrainingError(PolicysmithError, RuntimeError):
    """Training cannot go on."""


class SimulatorError(PolicysmithError, RuntimeError):
    """The simulator or its graphics library is missing or failed."""


class Interrupted(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP stopped the program. `code` is the exit code that says so, 128 and the signal's number."""

    def __init__(self, number: int, message: str | None = None) -> None:
        self.number, self.code = number, 128 + number
        default = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        super().__init__(default if message is None else message)
