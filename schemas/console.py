"""The command line: `policysmith`, and `build-and-train`, an alias of `policysmith train`.

This composition root validates a recipe before torch is imported, so that a mistake is reported in a fraction
of a second. Only then does it import `policysmith.builder.cli`, by name, which preserves the import direction
`builder -> components -> schemas`.

Exit codes: 0 done, 1 `diff` found differences, 2 wrong usage, 3 invalid recipe, 4 the policy or its data cannot be built, 5 training
failed, 6 the operating system refused a file, 141 the reader of the output is gone, 129, 130 or 143 stopped
by SIGHUP, Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import importlib
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import arguments
from .diagnostics import MOST, Diagnostic
from .errors import (
    Interrupted,
    PolicysmithError,
    RecipeError,
    RobotError,
    ServerError,
    SimulatorError,
    TrainingError,
)
from .interrupts import Signals
from .paths import expanded
from .terminal import forgiving_streams, printable

if TYPE_CHECKING:
    from .yaml.document import Document

OK, USAGE, INVALID_RECIPE, BUILD_FAILED, TRAINING_FAILED, REFUSED = 0, 2, 3, 4, 5, 6
INTERRUPTED, NO_READER = 130, 141
RUNNING = (TrainingError, SimulatorError, RobotError, ServerError)
"""Errors while something runs, not while it is built."""


def build_and_train(argv: Sequence[str] | None = None) -> int:
    """Run `build-and-train` and return the exit code."""
    return _run(arguments.build_and_train(), argv)


def policysmith(argv: Sequence[str] | None = None) -> int:
    """Run `policysmith` and return the exit code."""
    return _run(arguments.policysmith(), argv)


def _run(parser: ArgumentParser, argv: Sequence[str] | None) -> int:
    forgiving_streams()
    try:
        try:
            return _execute(parser, sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return NO_READER


def _execute(parser: ArgumentParser, argv: Sequence[str]) -> int:
    args = Namespace()
    try:
        if argv[:1] == ["--complete"]:
            from .questions.completion import candidates

            sys.stdout.writelines(f"{word}\n" for word in candidates(argv[1:]))
            return OK
        if not argv:
            parser.print_help()
            return OK
        args = parser.parse_args(argv)
        with Signals():
            if "recipe" in args:
                args.document = _validated(args)
            return _function(args)(args)
    except BrokenPipeError:
        raise
    except RecipeError as error:
        report(error.diagnostics, getattr(args, "format", "text"))
        return INVALID_RECIPE
    except PolicysmithError as error:
        _say(str(error))
        return TRAINING_FAILED if isinstance(error, RUNNING) else BUILD_FAILED
    except OSError as error:
        _say(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        return REFUSED
    except Interrupted as stop:
        if str(stop):  # empty in all processes but one
            sys.stderr.write(f"{stop}\n")
        return stop.code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED


def _function(args: Namespace) -> Callable[[Namespace], int]:
    """Return the function of a verb. Without parts of its own, a recipe may need no torch."""
    from .questions.commands import needs_registry

    light = "light" in args and not needs_registry(args)
    module = "schemas.questions.commands" if light else getattr(args, "module", "builder.cli")
    function: Callable[[Namespace], int] = getattr(
        importlib.import_module(f"policysmith.{module}"), args.function
    )
    return function


def _say(message: str) -> None:
    sys.stderr.write(f"{_paint('error')}: {printable(message)}\n")


def _validated(args: Namespace) -> Document:
    """Return the recipe with its overrides, or raise RecipeError with all findings that need no torch."""
    from .check import check
    from .composition import composed, resolved
    from .overrides import apply
    from .yaml.document import read

    own = read(Path(args.recipe))
    document = apply(composed(own), args.override)
    found = check(resolved(document), allow_imports=args.allow_imports)
    if found and getattr(args, "fix", False) and _fixed(own, Path(args.recipe), found):
        return _validated(args)
    if found:
        raise RecipeError(found)
    return document


def _fixed(document: Document, path: Path, found: Sequence[Diagnostic]) -> bool:
    """Write the cures to the recipe, tell each, and return whether there are any."""
    from .fixes import write_cures

    if path == Path("-"):
        return False
    applied = write_cures(document, expanded(path), found)
    for each in applied:
        sys.stderr.write(f"fixed {printable(f'{each.span}: {each.span.text} -> {each.edit}')}\n")
    return bool(applied)


def report(diagnostics: Sequence[Diagnostic], form: str = "text") -> None:
    """Write findings to stdout for programs, or as text to stderr, in color on terminals unless NO_COLOR is set.

    Of formats, those in `reports.FORMATS` are for programs; verbs such as `graph` have others, of what they make.
    """
    from . import reports

    if form in reports.FORMATS:
        sys.stdout.write(getattr(reports, f"as_{form}")(diagnostics))
        return
    color = _color()
    for diagnostic in diagnostics[:MOST]:
        sys.stderr.write(diagnostic.render(color=color) + "\n\n")
    count = sum(found.severity == "error" and found.code[:4] != "E009" for found in diagnostics)
    if count:
        more = " or more" if count >= MOST else ""
        _say(f"the recipe has {count}{more} mistake{'s' * (count != 1)}")


def _color() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def _paint(text: str) -> str:
    return f"\x1b[1;31m{text}\x1b[0m" if _color() else text
