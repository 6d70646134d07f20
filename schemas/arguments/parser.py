"""Parsers that group verbs, show examples and suggest cures, and the options that several verbs share."""

from __future__ import annotations

import math
import re
import sys
from argparse import (
    SUPPRESS,
    Action,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Sequence
from typing import Any, NoReturn

from ..wording import near
from ..yaml.scalars import fits

_OVERRIDE = re.compile(r"-{0,2}(?P<change>[a-z_]+(?:\.\w+|\[\d+\])+=.*)", re.DOTALL)
_FORMAT_HELP = "format of the report (default: text)"
_DIGITS = 20
_MOST_GIB = 1e9
_GAP = 15  # columns of the names of verbs


class Parser(ArgumentParser):
    """A parser whose usage errors come with a cure. `groups` are its verbs, by heading, and `arguments` its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.arguments: list[Action] = []
        options.setdefault("formatter_class", RawDescriptionHelpFormatter)
        super().__init__(*args, **options)
        self.groups: dict[str, dict[str, Parser]] = {}
        self._actions_of_verbs: Any = None
        self._given: Sequence[str] = ()

    @property
    def verbs(self) -> dict[str, Parser]:
        """The parsers of its verbs, by name."""
        return {name: verb for group in self.groups.values() for name, verb in group.items()}

    def add_argument(self, *names: Any, **options: Any) -> Action:
        """Add an argument, which `arguments` lists."""
        self.arguments.append(super().add_argument(*names, **options))
        return self.arguments[-1]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse words, which the cures of errors refer to."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all words. A word too many is an error of the verb that it follows."""
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            parser = self
            for word in self._given:
                parser = parser.verbs.get(word, parser)
            parser.error(f"unrecognized arguments: {' '.join(rest)}{_cure(self._given, rest)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with 2."""
        word = next((word for word in self._given if not word.startswith("-")), None)
        if self.groups and word is not None and word not in self.verbs:
            message = f"there is no verb `{word}`{self._verb_meant(word)}"
        super().error(message)

    def _verb_meant(self, word: str) -> str:
        if word.endswith((".yaml", ".yml")) and {"check", "train"} <= self.verbs.keys():
            return f"; did you mean `{self.prog} check {word}` or `{self.prog} train {word}`?"
        meant = near(word, self.verbs)
        return f"; did you mean `{meant}`?" if meant else f"; verbs are {', '.join(self.verbs)}"

    def add_verb(
        self,
        group: str,
        name: str,
        function: str,
        about: str,
        *examples: str,
        module: str = "",
        light: bool = False,
    ) -> Parser:
        """Add a verb and return its parser.

        Args:
            group: Heading in the help.
            name: Name of the verb.
            function: Function that runs it, in `policysmith.builder.cli` or in `module`.
            about: One line, in the imperative.
            examples: Command lines.
            module: Module of the function, such as `builder.language.graph`.
            light: The function is in `schemas.questions.commands` as well, for parts that the package ships.
        """
        if self._actions_of_verbs is None:
            self._actions_of_verbs = self.add_subparsers(required=True, metavar="VERB", help=SUPPRESS)
            self.usage = f"{self.prog} VERB ..."
        parser: Parser = self._actions_of_verbs.add_parser(
            name,
            prog=f"{self.prog} {name}",
            description=f"{about[0].upper()}{about[1:]}.",
            epilog=_examples(examples),
        )
        parser.set_defaults(
            function=function, **({"module": module} if module else {}), **({"light": True} if light else {})
        )
        self.groups.setdefault(group, {})[name] = parser
        lines = []
        for heading, verbs in self.groups.items():
            lines.append(f"{heading}:")
            lines += [f"  {verb:<{_GAP}} {inner.description}" for verb, inner in verbs.items()]
            lines.append("")
        self.epilog = "\n".join(
            [*lines, f"`{self.prog} VERB --help` shows the flags of a verb, with examples."]
        )
        return parser


class _Version(Action):
    """Option that prints the version, which takes 0.2 s to look up, and exits."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, *rest: Any) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"policysmith {version('policysmith')}\n")
        parser.exit()


def _cure(given: Sequence[str], rest: Sequence[str]) -> str:
    """Return how to write an override among words of which the last are too many; empty if there is none."""
    found = next((match for word in rest if (match := _OVERRIDE.fullmatch(word))), None)
    split = next((i for i, word in enumerate(given[:-2]) if word == "-o" and "=" not in given[i + 1]), None)
    if found is None and split is not None and given[split + 2] in rest:
        return f"; overrides are written `-o {given[split + 1]}={given[split + 2]}`"
    return f"; overrides are written `-o {found['change']}`" if found else ""


def program(name: str, about: str, *examples: str) -> Parser:
    """Return the parser of a program."""
    parser = Parser(name, description=about, epilog=_examples(examples))
    parser.add_argument(
        "--version", action=_Version, nargs=0, dest=SUPPRESS, default=SUPPRESS, help="print the version"
    )
    return parser


def _examples(lines: Sequence[str]) -> str | None:
    return "\n  ".join([f"example{'s' * (len(lines) > 1)}:", *lines]) if lines else None


def add_recipe(parser: ArgumentParser) -> None:
    """Add a recipe, its overrides and its imports."""
    parser.add_argument("recipe", metavar="RECIPE", help="recipe, a YAML file, or - for stdin")
    parser.add_argument(
        "-o",
        dest="override",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        help="override a value of the recipe, such as training.steps=100; repeatable",
    )
    add_imports(parser)


def add_checkpoint(parser: ArgumentParser) -> None:
    """Add a checkpoint or run."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT_OR_RUN", help="a checkpoint, or a run for its last checkpoint"
    )


def add_imports(parser: ArgumentParser) -> None:
    """Add `--allow-imports`."""
    parser.add_argument(
        "--allow-imports", action="store_true", help="run the Python files that the recipe imports"
    )


def add_verify(parser: ArgumentParser) -> None:
    """Add `--no-verify`."""
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="skip the comparison of checkpoint files with their SHA-256 digests",
    )


def add_device(parser: ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", choices=("cpu", "cuda"), help="device (default: cuda if available)")


def add_format(parser: ArgumentParser, *formats: str) -> None:
    """Add `--format`, whose first and default choice is `text`."""
    parser.add_argument("--format", choices=("text", *formats), default="text", help=_FORMAT_HELP)


def count(text: str) -> int:
    """Return a whole number of at least 0. Raise ArgumentTypeError for other text."""
    if not text.isascii() or not text.isdigit():
        raise ArgumentTypeError(f"{text!r} is not a whole number")
    if len(text) > _DIGITS or not fits(number := int(text)):
        raise ArgumentTypeError(f"{text[:_DIGITS]!r} does not fit in 64 bits")
    return number


def port(text: str) -> int:
    """Return a TCP port. Raise ArgumentTypeError for other text."""
    if (number := count(text)) > 65535:
        raise ArgumentTypeError(f"{text!r} is more than 65535")
    return number


def positive(text: str) -> int:
    """Return a whole number of at least 1. Raise ArgumentTypeError for other text."""
    if (number := count(text)) < 1:
        raise ArgumentTypeError(f"{text!r} is less than 1")
    return number


def spread(text: str) -> float:
    """Return a finite number of at least 0. Raise ArgumentTypeError for other text."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.0 <= number < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a finite number of at least 0")
    return number


def gibibytes(text: str) -> float:
    """Return a size such as `24GB`, `24GiB` or `24` in GiB. Raise ArgumentTypeError for other text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:g|gb|gib)?", text.strip().lower())
    if match is None or not 0.0 < float(match[1]) < _MOST_GIB:
        raise ArgumentTypeError(f"{text!r} is not a size of memory, such as 24GB")
    return float(match[1])
