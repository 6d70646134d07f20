"""Shell completion of verbs, flags, parts, topics and keys of overrides, without torch.

The script of a shell calls `policysmith --complete WORDS...`, whose last word is the one under the cursor. No answer
leaves the word to the shell, which completes paths.
"""

from __future__ import annotations

from argparse import Action
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..arguments import policysmith
from ..arguments.parser import Parser
from ..errors import RecipeError
from ..json_schema import SchemaTree, shipped_schema

SCRIPTS = {
    "bash": """\
_policysmith() {
    local IFS=$'\\n'
    COMPREPLY=($(policysmith --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[.=] ]]; then compopt -o nospace; fi
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=/}
complete -o default -F _policysmith policysmith
""",
    "zsh": """\
#compdef policysmith
_policysmith() {
    local -a found
    found=("${(@f)$(policysmith --complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n ${found[1]} ]]; then
        compadd -S '' -- ${(M)found:#*[.=]}
        compadd -- ${found:#*[.=]}
    else
        _files
    fi
}
compdef _policysmith policysmith
""",
    "fish": """\
function __policysmith
    set -l words (commandline -opc) (commandline -ct)
    set -l found (policysmith --complete $words[2..-1] 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c policysmith -f -a '(__policysmith)'
""",
}
"""Completion scripts, by shell."""


def candidates(words: Sequence[str]) -> list[str]:
    """Return the completions of the last word, after `policysmith`; none where a path belongs."""
    *before, current = words or [""]
    parser = policysmith()
    while parser.verbs and before and before[0] in parser.verbs:
        parser = parser.verbs[before.pop(0)]
    return [word for word in _options(parser, before, current) if word.startswith(current)]


def _options(parser: Parser, before: Sequence[str], current: str) -> Iterator[str]:
    flags = {flag: action for action in parser.arguments for flag in action.option_strings}
    if before and (action := flags.get(before[-1])) is not None and action.nargs != 0:
        yield from _values(action, before, current)
    elif current.startswith("-"):
        yield from flags
    elif parser.verbs:
        yield from parser.verbs
    else:
        taken = sum(not _belongs_to_flag(flags, before, at) for at in range(len(before)))
        places = [action for action in parser.arguments if not action.option_strings]
        if taken < len(places):
            yield from _values(places[taken], before, current)


def _belongs_to_flag(flags: dict[str, Action], before: Sequence[str], at: int) -> bool:
    if before[at] in flags:
        return True
    action = flags.get(before[at - 1]) if at else None
    return action is not None and action.nargs != 0


def _values(action: Action, before: Sequence[str], current: str) -> Iterator[str]:
    if action.choices is not None:
        yield from map(str, action.choices)
    elif action.dest in ("override", "search"):
        yield from _overrides(before, current)
    elif action.dest == "topic":
        yield from _topics(current)


def _topics(current: str) -> Iterator[str]:
    from .codes import CODES

    tree = SchemaTree(shipped_schema())
    for kind in tree.kinds():
        yield kind
        yield from (f"{kind}.{name}" for name in tree.types(kind))
    yield from (code.split(" ")[0] for code in CODES)
    yield from (text.rstrip(".=") for text in _keys(tree, {}, current))


def _overrides(before: Sequence[str], current: str) -> Iterator[str]:
    prefix = "~" if current.startswith("~") else ""
    yield from (
        prefix + text
        for text in _keys(SchemaTree(shipped_schema()), _recipe(before), current.removeprefix("~"))
    )


def _recipe(words: Sequence[str]) -> Any:
    """Return the recipe that a command line names, as plain values; empty if there is none."""
    from ..composition import composed
    from ..yaml.document import read

    for word in words:
        if word.endswith((".yaml", ".yml")) and Path(word).is_file():
            try:
                return composed(read(Path(word))).value
            except RecipeError:
                return {}
    return {}


def _keys(tree: SchemaTree, recipe: Any, current: str) -> Iterator[str]:
    """Yield the paths one key longer than those of `current`, or the choices of a value after `=`."""
    path, equals, _ = current.partition("=")
    *parents, _ = path.split(".")
    keys = path.split(".") if equals else parents
    schema: Any = tree.root
    value: Any = recipe
    for key in keys:
        found = next(((s, v) for step, s, v in tree.below(schema, value) if str(step) == key), None)
        if found is None:
            return
        schema, value = found
    if equals:
        option = tree.expand(schema, value)
        choices = option.get("enum", [True, False] if option.get("type") == "boolean" else [])
        yield from (f"{path}={_spelled(choice)}" for choice in choices)
        return
    for step, child, item in tree.below(schema, value):
        inner = tree.expand(child, item)
        deeper = isinstance(item, dict | list) or "properties" in inner or inner.get("type") == "object"
        yield ".".join([*keys, str(step)]) + ("." if deeper else "=")


def _spelled(choice: object) -> str:
    return {True: "true", False: "false", None: "null"}.get(choice, str(choice))  # type: ignore[call-overload, no-any-return]
