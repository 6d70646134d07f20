"""Validation of a recipe against its JSON Schema, in a fraction of a second: without torch or pydantic.

    for diagnostic in check(document):
        print(diagnostic.render())

Numbers are as strict as in the pydantic stage: `1.0` is not an integer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from . import wording
from .diagnostics import MOST, Diagnostic, ErrorCode, Source, in_order
from .elsewhere import answer
from .errors import RecipeError
from .json_schema import SchemaTree, shipped_schema
from .kinds import KINDS, unlisted_types
from .migration import VERSION, version_cure
from .wording import near, quoted, shortened, where
from .yaml.document import Document
from .yaml.nodes import KeyPath
from .yaml.parser import Parser


def check(
    document: Document, *, allow_imports: bool = False, known: Mapping[str, Collection[str]] | None = None
) -> list[Diagnostic]:
    """Return all findings of the schema, sorted by position.

    Types missing from the schema are accepted if they exist here (a new file, a plugin) or if `imports` may
    register them. `imports` themselves are findings, unless allowed. `known` are the types, by kind, that this
    process has registered.
    """
    checker = _Checker(document, SchemaTree(shipped_schema()), (), known or {})
    refused = () if allow_imports else checker.refused_imports()
    found = islice(checker.findings(), MOST)
    return in_order([*found, *checker.misspelled_policy(), *islice(refused, MOST)])


def check_against(document: Document, path: KeyPath, schema: Mapping[str, Any]) -> list[Diagnostic]:
    """Return all findings of `schema`, which may refer to shipped parts, for the value at `path`."""
    whole = {**schema, "$defs": shipped_schema()["$defs"]}
    return in_order(list(islice(_Checker(document, SchemaTree(whole), path).findings(), MOST)))


def _value(document: Document, path: KeyPath) -> Any:
    value: Any = document.value
    for step in path:
        value = value[step]
    return value


def _pattern(validator: Any, pattern: str, instance: object, schema: object) -> Iterator[ValidationError]:
    ending = r"\Z" if pattern.endswith("$") else ""
    if isinstance(instance, str) and not re.search(pattern.removesuffix("$") + ending, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


_Validator: Any = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    {"pattern": _pattern},
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int),
)


class _Checker:
    """Validates the value at `base` of a document against the schema in `tree`."""

    def __init__(
        self,
        document: Document,
        tree: SchemaTree,
        base: KeyPath,
        known: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self.document, self.tree, self.base, self.known = document, tree, base, known or {}
        self.imports = bool(document.value.get("imports"))
        self.value = _value(document, base)

    def findings(self) -> Iterator[Diagnostic]:
        errors = list(_Validator(self.tree.root).iter_errors(self.value))
        mistyped = {tuple(error.absolute_path) for error in errors if error.validator == "type"}
        for error in errors:
            if error.validator == "type" or tuple(error.absolute_path) not in mistyped:
                yield from self._explain(error)

    def misspelled_policy(self) -> Iterator[Diagnostic]:
        """Yield a `policy.type` that is nearly `composed`; other names may be registered later."""
        policy = self.value.get("policy")
        kind = policy.get("type") if isinstance(policy, dict) else None
        if (
            isinstance(kind, str)
            and kind != "composed"
            and kind not in self.known.get("policies", ())
            and not self.imports
            and near(kind, ["composed"], 0.75)
        ):
            message = f"unknown policy `{kind}`"
            place = ("policy", "type")
            yield self._at("E006 unknown-type", message, place, "did you mean `composed`?", edit="composed")

    def refused_imports(self) -> Iterator[Diagnostic]:
        """Yield each entry of `imports`."""
        entries = self.value.get("imports")
        for position, entry in enumerate(entries if isinstance(entries, list) else ()):
            message = f"`{shortened(str(entry))}` is not imported: recipes run no code by default"
            help = "read the file, then add `--allow-imports` (Python: `allow_imports=True`)"
            yield self._at(
                "E011 import-refused", message, ("imports", position), "this would run code", help=help
            )

    def _explain(self, error: Any) -> Iterator[Diagnostic]:
        keyword, value, wanted = str(error.validator), error.instance, error.validator_value
        path: KeyPath = (*self.base, *error.absolute_path)
        if "propertyNames" in error.absolute_schema_path:
            rule = "use lower-case letters, digits and `_`, starting with a letter"
            message = f"`{shortened(value)}` is not a valid name; {rule}"
            yield self._at("E007 invalid-value", message, (*path, value), "invalid name", key=True)
        elif keyword == "additionalProperties":
            yield from (
                self._unknown_key(path, key) for key in value if key not in error.schema["properties"]
            )
        elif keyword == "required":
            yield from (self._missing_key(path, key) for key in wanted if key not in value)
        elif keyword == "type":
            yield self._wrong_type(path, value, wanted)
        elif keyword in ("enum", "const"):
            yield from self._not_among(path, value, [wanted] if keyword == "const" else wanted)
        elif keyword == "anyOf":
            yield from self._no_alternative(path, value, error)
        else:
            yield self._invalid(path, value, error)

    def _unknown_key(self, path: KeyPath, key: str) -> Diagnostic:
        keys = sorted(self._schema(path).get("properties", ()))
        places = [(*self.base, *place) for place in self.tree.places(self.value, key)]
        places = [place for place in places if place[:-1] != path and key != "type"][:2]
        elsewhere = answer(key)
        meant = near(key, keys, 0.8) or (None if places or elsewhere else near(key, keys))
        if meant is not None:
            label = f"did you mean `{meant}`?"
        elif elsewhere:
            label = elsewhere
        elif places:
            label = f"did you mean {wording.either(map(where, places))}?"
        else:
            label = "unknown key"
        part = self._part(path)
        name = f"`{part.partition('.')[2]}`" if part else where(path)
        notes = (f"{name} accepts: {', '.join(keys)}",) if keys else ()
        help = f"run `policysmith explain {part}`" if part else ""
        message = f"{where(path)} has no key `{shortened(key)}`"
        edit = meant if meant not in self._mapping(path) else None
        found = self._at(
            "E003 unknown-key", message, (*path, key), label, key=True, notes=notes, help=help, edit=edit
        )
        chosen = self.document.span((*path, "type"))
        if part and chosen.source is not found.span.source:
            return replace(found, related=((chosen, f"`{part.partition('.')[2]}` is chosen here"),))
        return found

    def _missing_key(self, path: KeyPath, key: str) -> Diagnostic:
        wanted = self._schema(path).get("properties", {}).get(key, {})
        kind = next((kind for kind in self.tree.kinds() if wanted.get("enum") == self.tree.types(kind)), None)
        notes = (f"{kind}: {', '.join(self._types(kind))}",) if kind else wording.about(key, wanted)
        message = f"{where(path)} needs the key `{key}`"
        return self._at("E004 missing-key", message, path, f"`{key}` is missing", key=True, notes=notes)

    def _wrong_type(self, path: KeyPath, value: object, types: Any) -> Diagnostic:
        text = "" if isinstance(value, (dict, list)) else self.document.span(path).text
        message = f"{where(path)} must be {wording.expected(types)}, found {wording.found(value)}"
        label, edit = wording.correction(value, types, text)
        if edit is not None and not self._accepts(path, edit):
            label, edit = f"expected {wording.expected(types)}", None
        if isinstance(value, str) and types == "object":
            label, edit = self._as_mapping(path, value) or (label, edit)
        return self._at("E005 wrong-type", message, path, label, notes=self._about(path), edit=edit)

    def _as_mapping(self, path: KeyPath, text: str) -> tuple[str, str | None] | None:
        """Return a label and an edit for a string in the place of a mapping, if it is clear what was meant."""
        options = self._schema(path).get("properties", {})
        if text in options.get("type", {}).get("enum", ()):
            edit = f"{{type: {text}}}"
            return f"write {edit}", edit if self._accepts(path, edit) else None
        key, _, value = text.partition(":")
        if value and key in options:
            return f"put a space after the colon: `{shortened(f'{key}: {value}')}`", None
        return (f"expected a mapping of {', '.join(sorted(options))}", None) if options else None

    def _accepts(self, path: KeyPath, text: str) -> bool:
        """Return whether the schema accepts the value that `text` stands for at a path."""
        try:
            node = Parser(Source("<edit>", text)).value()
        except RecipeError:
            return False
        schema = {**self._schema(path), "$defs": self.tree.root.get("$defs", {})}
        return node is not None and bool(_Validator(schema).is_valid(node.plain()))

    def _mapping(self, path: KeyPath) -> Collection[str]:
        value = _value(self.document, path)
        return value if isinstance(value, dict) else ()

    def _not_among(self, path: KeyPath, value: object, choices: list[Any]) -> Iterator[Diagnostic]:
        kinds = [
            kind for kind in self.tree.kinds() if path[-1:] == ("type",) and choices == self.tree.types(kind)
        ]
        if kinds:
            yield from self._unknown_type(path, str(value), kinds[0])
            return
        words = wording.either(
            f"`{choice}`" if isinstance(choice, str) else quoted(choice) for choice in choices
        )
        names = [choice for choice in choices if isinstance(choice, str)]
        meant = near(str(value), names)
        label = f"expected {words}" if meant is None else f"did you mean `{meant}`?"
        message = f"{where(path)} must be {words}, found {wording.found(value)}"
        edit = meant if isinstance(value, str) else None
        help = version_cure(value) if path == (VERSION,) else ""
        yield self._at(
            "E007 invalid-value", message, path, label, notes=self._about(path), help=help, edit=edit
        )

    def _unknown_type(self, path: KeyPath, name: str, kind: str) -> Iterator[Diagnostic]:
        known = self._types(kind)
        if name in known or self.imports:
            return
        noun = KINDS[kind]
        meant = near(name, known)
        label = f"no such {noun}" if meant is None else f"did you mean `{meant}`?"
        other = next((KINDS[other] for other in self.tree.kinds() if name in self.tree.types(other)), None)
        name = shortened(name)
        if other:
            label, meant = f"`{name}` is a {other}", None
        notes = (f"{kind}: {', '.join(known)}",)
        message = f"unknown {noun} `{name}`"
        model = kind == "backbones" and meant is None and not other
        help = f"a model of timm is written `{{type: timm, name: {name}}}`" if model else ""
        yield self._at("E006 unknown-type", message, path, label, notes=notes, help=help, edit=meant)

    def _no_alternative(self, path: KeyPath, value: object, error: Any) -> Iterator[Diagnostic]:
        if all(inner.validator == "required" for inner in error.context):
            keys = wording.either(f"`{key}`" for inner in error.context for key in inner.validator_value)
            message = f"{where(path)} needs the key {keys}"
            yield self._at("E004 missing-key", message, path, f"{keys} is missing", key=True)
            return
        branches: dict[int, list[Any]] = {}
        for inner in error.context:
            branches.setdefault(inner.schema_path[0], []).append(inner)
        fitting = [
            inner
            for inner in branches.values()
            if not any(e.validator in ("type", "const", "enum") and not e.path for e in inner)
        ]
        if len(fitting) == 1:
            for inner in fitting[0]:
                yield from self._explain(inner)
            return
        words = wording.either(wording.alternatives(error.validator_value))
        message = f"{where(path)} must be {words}, found {wording.found(value)}"
        yield self._at("E005 wrong-type", message, path, f"expected {words}", notes=self._about(path))

    def _invalid(self, path: KeyPath, value: Any, error: Any) -> Diagnostic:
        must, label = wording.limit(str(error.validator), error.validator_value, value)
        message = f"{where(path)} must {must or f'be valid: {error.message}'}"
        return self._at("E007 invalid-value", message, path, label, notes=self._about(path))

    def _about(self, path: KeyPath) -> tuple[str, ...]:
        """Return the schema's description of the last key of a path."""
        length = next((i + 1 for i in reversed(range(len(path))) if isinstance(path[i], str)), 0)
        return wording.about(str(path[length - 1]), self._schema(path[:length])) if length else ()

    def _schema(self, path: KeyPath) -> dict[str, Any]:
        return self.tree.at(self.value, path[len(self.base) :])

    def _types(self, kind: str) -> list[str]:
        return sorted({*self.tree.types(kind), *unlisted_types(kind), *self.known.get(kind, ())})

    def _part(self, path: KeyPath) -> str:
        """Return the part at a path, such as `heads.mlp`; empty if there is none."""
        kind, name = self._schema(path).get("x-part", ("", ""))
        return f"{kind}.{name}" if kind else ""

    def _at(
        self,
        code: ErrorCode,
        message: str,
        path: KeyPath,
        label: str,
        *,
        key: bool = False,
        notes: tuple[str, ...] = (),
        help: str = "",
        edit: str | None = None,
    ) -> Diagnostic:
        span = self.document.span(path, "key" if key else "value")
        related = () if key else self.document.set_by(path)
        edit = edit if span.line and span.line == span.end_line and not related else None
        return Diagnostic(code, message, span, label, related, notes=notes, help=help, edit=edit)
