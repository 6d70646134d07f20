"""Composition of a recipe: `base` recipes below it, variables and environment variables inside it.

    base: act.yaml                        # or a list; later ones win over earlier ones, the recipe over all
    vars: {width: 512, data: "${env:DATA:-recipes/datasets/drawer_open}"}
    data: {path: "${vars.data}"}

Mappings merge; lists and single values replace; a mapping with another `type` replaces. A null removes what a base
sets, unless null is a value of that option. Overrides apply between `composed` and `resolved`, so they can change
variables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from .diagnostics import Diagnostic, Source, Span, in_order
from .errors import RecipeError
from .json_schema import Schema, SchemaTree, nullable, shipped_schema
from .paths import exists, expanded, names_in
from .wording import near
from .yaml.document import Document, read
from .yaml.nodes import MAX_BYTES, MAX_DEPTH, MAX_NODES, Entry, Key, KeyPath, Node, dotted
from .yaml.scalars import Scalar, resolve

BASE, VARS = "base", "vars"
PATH_KEYS = ("pretrained", "architecture", "tokenizer", "init", "from")
"""Options of a policy or part that may hold a path."""
_MOST_BASES = 32
_REFERENCE = re.compile(r"\$(?:(?P<escaped>\$)(?=\{)|\{(?P<name>[^{}]*)(?P<end>\}?))")
_ENVIRONMENT = re.compile(r"env:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)
_VARIABLE = re.compile(r"vars((?:\.[A-Za-z0-9_-]+)+)")


def composed(document: Document) -> Document:
    """Return the document merged over its `base` recipes, or raise RecipeError with the place of a bad one."""
    return _composed(document, ())


def resolved(document: Document) -> Document:
    """Return the document without `vars`, references and removals, or raise RecipeError with all findings."""
    document = _without_removed(document)
    variables = _Variables(document)
    entries = document.root.content
    assert isinstance(entries, dict)
    if VARS not in entries and "${" not in _text(document.root):
        return document
    root = Node(
        document.root.span,
        {
            key: Entry(entry.key, variables.substitute(entry.node))
            for key, entry in entries.items()
            if key != VARS
        },
    )
    found = variables.findings or list(variables.unused())
    if not found and (root.size > MAX_NODES or root.depth > MAX_DEPTH):
        message = f"references expand to more than {MAX_NODES:,} values or {MAX_DEPTH} levels"
        found = [Diagnostic("E008 refused-yaml", message, root.span)]
    if found:
        raise RecipeError(in_order(found))
    return replace(document, root=root)


def _composed(document: Document, above: tuple[Path, ...]) -> Document:
    entries = document.root.content
    if not isinstance(entries, dict) or BASE not in entries:
        return document
    listed = entries[BASE].node
    names = listed.content if isinstance(listed.content, tuple) else (listed,)
    below: Node | None = None
    for name in names:
        base = _read_base(document, name, above)
        below = base if below is None else merged(below, base)
    rest = Node(document.root.span, {key: entry for key, entry in entries.items() if key != BASE})
    root = rest if below is None else merged(below, rest)
    if root.size > MAX_NODES:
        message = f"the recipe and its bases have more than {MAX_NODES:,} keys and values"
        raise _refused(message, listed.span)
    return replace(document, root=root)


def _read_base(document: Document, name: Node, above: tuple[Path, ...]) -> Node:
    """Return the content of a base recipe, with paths relative to the directory of `document`."""
    if not isinstance(name.content, str):
        message = "`base` must be a path or a list of paths"
        raise RecipeError([Diagnostic("E005 wrong-type", message, name.span, "expected a path")])
    path = document.directory / expanded(name.content)
    here = Path(os.path.realpath(path))
    if here in above:
        names = " -> ".join(file.name for file in (*above[above.index(here) :], here))
        raise _refused(f"base recipes form a cycle: {names}", name.span)
    if len(above) >= _MOST_BASES:
        raise _refused(f"base recipes are nested more than {_MOST_BASES} levels deep", name.span)
    if not exists(path):
        raise RecipeError([_missing(name, path)])
    base = _composed(read(path, base_of=name.span), (*above, here))
    return _relocated(base.root, base.directory, document.directory)


def _missing(name: Node, path: Path) -> Diagnostic:
    meant = near(path.name, [found for found in names_in(path.parent) if found.endswith((".yaml", ".yml"))])
    label = f"did you mean `{Path(str(name.content)).parent / meant}`?" if meant else "no such file"
    help = "a base is relative to the recipe that names it"
    return Diagnostic(
        "E009 unreadable-file", f"there is no base recipe `{name.content}`", name.span, label, help=help
    )


def merged(below: Node, above: Node) -> Node:
    """Return the node `above` merged over the node `below`."""
    if not isinstance(below.content, dict) or not isinstance(above.content, dict):
        return above
    old, new = (content.get("type") for content in (below.content, above.content))
    if old is not None and new is not None and old.node.content != new.node.content:
        return above
    entries = dict(below.content)
    for key, entry in above.content.items():
        if key in entries:
            removes = entry.node.content is None
            node = replace(entry.node, removes=True) if removes else merged(entries[key].node, entry.node)
            entry = Entry(entry.key, node)
        entries[key] = entry
    return Node(above.span, entries)


def with_absolute_paths(document: Document) -> Document:
    """Return the document with absolute paths in place of relative ones to files that exist."""

    def spell(value: str) -> str:
        place = document.directory / expanded(value)
        return str(place.resolve()) if exists(place) else value

    return replace(document, root=_with_paths(document.root, (), lambda path, value: spell(value)))


def _relocated(node: Node, old: Path, new: Path) -> Node:
    """Return the node with relative paths to files below `old` made relative to `new`."""
    if os.path.realpath(old) == os.path.realpath(new):
        return node

    def move(path: KeyPath, value: str) -> str:
        place = old / expanded(value)
        if "${" in value or expanded(value).is_absolute() or not (path[0] == "data" or exists(place)):
            return value
        return str(os.path.relpath(str(place), str(new)))

    return _with_paths(node, (), move)


def _with_paths(node: Node, path: KeyPath, change: Callable[[KeyPath, str], str]) -> Node:
    """Return the node with every value that may be a path changed."""
    if isinstance(node.content, dict):
        entries = {
            key: Entry(entry.key, _with_paths(entry.node, (*path, key), change))
            for key, entry in node.content.items()
        }
        return replace(node, content=entries)
    if isinstance(node.content, tuple):
        items = (_with_paths(item, (*path, index), change) for index, item in enumerate(node.content))
        return replace(node, content=tuple(items))
    if isinstance(node.content, str) and _may_be_path(path, node.content):
        return replace(node, content=change(path, node.content))
    return node


def _may_be_path(path: KeyPath, value: str) -> bool:
    if path[:1] == ("data",):
        return path[-1] == "path" and not value.startswith("hf://")
    if path[:1] == ("imports",):
        return value.endswith(".py")
    return path[:1] in (("policy",), ("transforms",), ("collator",)) and path[-1] in PATH_KEYS


def _without_removed(document: Document) -> Document:
    """Drop entries that a null removes: those of a base or an override whose schema does not accept null."""
    tree = SchemaTree(shipped_schema())
    value = document.value

    def walk(node: Node, path: KeyPath) -> Node:
        if isinstance(node.content, dict):
            kept = {
                key: Entry(entry.key, walk(entry.node, (*path, key)))
                for key, entry in node.content.items()
                if not (entry.node.removes and not _accepts_null(tree.at(value, (*path, key))))
            }
            return replace(node, content=kept)
        if isinstance(node.content, tuple):
            return replace(
                node, content=tuple(walk(item, (*path, index)) for index, item in enumerate(node.content))
            )
        return node

    if not _any_removed(document.root):
        return document
    return replace(document, root=walk(document.root, ()))


def _accepts_null(schema: Schema) -> bool:
    """Return whether null is a value of an option; True for options that the shipped schema does not know."""
    return not schema or nullable(schema)


def _any_removed(node: Node) -> bool:
    return node.removes or any(_any_removed(child) for child in node.children)


def _text(node: Node) -> str:
    """Return all strings of a node."""
    if isinstance(node.content, str):
        return node.content
    return "\n".join(text for child in node.children if "${" in (text := _text(child)))


class _Variables:
    """References of a document, and the variables and environment variables that they name."""

    def __init__(self, document: Document) -> None:
        entries = document.root.content
        assert isinstance(entries, dict)
        self._source = document.root.span.source
        self._held = entries.get(VARS)
        self._used: set[str] = set()
        self._open: list[str] = []
        self._values: dict[str, Node] = {}
        self.findings: list[Diagnostic] = []
        if self._held is not None and not isinstance(self._held.node.content, dict):
            message = "`vars` must be a mapping of names to values"
            self.findings.append(Diagnostic("E005 wrong-type", message, self._held.node.span))
            self._held = None

    def substitute(self, node: Node) -> Node:
        """Return the node with every reference replaced."""
        if isinstance(node.content, dict):
            entries = {
                key: Entry(entry.key, self.substitute(entry.node)) for key, entry in node.content.items()
            }
            return replace(node, content=entries)
        if isinstance(node.content, tuple):
            return replace(node, content=tuple(map(self.substitute, node.content)))
        return self._filled(node) if isinstance(node.content, str) and "${" in node.content else node

    def unused(self) -> Iterator[Diagnostic]:
        """Yield the variables of the recipe itself, or of an override, that nothing refers to."""
        entries = self._held.node.content if self._held is not None else {}
        assert isinstance(entries, dict)
        for name, entry in entries.items():
            ours = entry.key.source is self._source or entry.key.source.name.startswith("<")
            if name not in self._used and ours:
                meant = near(name, self._used)
                label = f"did you mean `{meant}`?" if meant else "not used"
                message = f"nothing refers to the variable `{name}`"
                yield Diagnostic(
                    "E013 bad-reference",
                    message,
                    entry.key,
                    label,
                    help=f"write `${{vars.{name}}}` where it belongs, or remove it",
                )

    def _filled(self, node: Node) -> Node:
        text = str(node.content)
        whole = _REFERENCE.fullmatch(text)
        if whole is not None and whole["escaped"] is None and whole["end"]:
            return self._value(node, whole["name"])
        filled, last, origin = "", 0, None
        for match in _REFERENCE.finditer(text):
            filled += text[last : match.start()]
            last = match.end()
            if match["escaped"]:
                filled += "$"
            elif not match["end"]:
                self._fail(node, "a reference ends with `}`")
            else:
                value = self._value(node, match["name"])
                origin = value.origin or origin
                if isinstance(value.content, dict | tuple):
                    self._fail(
                        node, f"`${{{match['name']}}}` is not a single value; use it without other text"
                    )
                else:
                    filled += _written(value.content)
            if len(filled) > MAX_BYTES:
                self._fail(node, "references expand to too much text")
                break
        return replace(node, content=filled + text[last:], origin=origin)

    def _value(self, node: Node, name: str) -> Node:
        """Return the value of a reference, placed at the reference."""
        if environment := _ENVIRONMENT.fullmatch(name):
            return self._environment(node, environment["name"], environment["default"])
        variable = _VARIABLE.fullmatch(name)
        if variable is None:
            self._fail(
                node,
                f"`${{{name[:80]}}}` is not a reference",
                "write `${vars.NAME}`, `${env:NAME}` or `${env:NAME:-default}`, or `$${` for a plain `${`",
            )
            return replace(node, content=None)
        return self._variable(node, variable[1][1:].split("."))

    def _environment(self, node: Node, name: str, default: str | None) -> Node:
        text = os.environ.get(name) or default
        if text is None:
            cure = f"set it, or write a default: `${{env:{name}:-value}}`"
            self._fail(node, f"the environment variable `{name}` is not set", cure)
            return replace(node, content=None)
        origin = Span(Source(f"environment variable {name}")) if os.environ.get(name) else None
        try:
            return replace(node, content=resolve(text), origin=origin)
        except ValueError as error:
            self._fail(node, f"the value of the environment variable `{name}` {error}")
            return replace(node, content=None)

    def _variable(self, node: Node, steps: list[str]) -> Node:
        found = self._held.node if self._held is not None else None
        walked: list[Key] = [VARS]
        for step in steps:
            entries = found.content if found is not None else {}
            if not isinstance(entries, dict) or step not in entries:
                known = list(entries) if isinstance(entries, dict) else []
                meant = near(step, known)
                cure = f"did you mean `{meant}`?" if meant else f"known: {', '.join(known) or 'none'}"
                self._fail(node, f"`{dotted(walked)}` has no variable `{step}`", label=cure)
                return replace(node, content=None)
            found = entries[step].node
            walked.append(step)
        assert found is not None
        name = dotted(walked)
        self._used.add(steps[0])
        if name in self._open:
            cycle = " -> ".join((*self._open[self._open.index(name) :], name))
            self._fail(node, f"variables refer to one another in a cycle: {cycle}")
            return replace(node, content=None)
        if name not in self._values:
            self._open.append(name)
            self._values[name] = self.substitute(found)
            self._open.pop()
        value = self._values[name]
        if value.size > MAX_NODES:
            self._fail(node, f"references expand to more than {MAX_NODES:,} values")
            return replace(node, content=None)
        return Node(node.span, value.content, origin=value.origin or found.span)

    def _fail(self, node: Node, message: str, help: str = "", label: str = "") -> None:
        if len(self.findings) < _MOST_BASES:
            self.findings.append(Diagnostic("E013 bad-reference", message, node.span, label, help=help))


def _written(value: Scalar) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _refused(message: str, span: Span) -> RecipeError:
    return RecipeError([Diagnostic("E008 refused-yaml", message, span)])
