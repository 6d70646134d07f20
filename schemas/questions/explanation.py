"""Explanations of parts, options, sections and error codes, from the JSON Schema of recipes."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import RegistryError
from ..json_schema import Schema, SchemaTree, nullable
from ..kinds import KINDS
from ..wording import did_you_mean, near
from .codes import CODES, page_of

_INDENT = "  "


def explain(topic: str, root: Schema, width: int = 80) -> str:
    """Return an explanation of a part, an option, a section, a kind of parts or an error code.

    Args:
        topic: For example `heads.mlp`, `heads.mlp.loss`, `training.optimizer`, `backbones` or `E003`.
        root: JSON Schema of recipes.
        width: Characters a line.

    Raises:
        RegistryError: There is no such topic.
    """
    if found := page_of(topic):
        code, page = found
        example = textwrap.indent(page.example, _INDENT * 2)
        paragraphs = (f"{code}", page.cause, page.cure, f"example:\n\n{example}")
        return "\n\n".join(_wrapped(text, width) for text in paragraphs) + "\n"
    tree = SchemaTree(root)
    first, *steps = [step for step in topic.replace("[", ".").replace("]", "").split(".") if step]
    if first in KINDS and not steps:
        return listing(first, root, width)
    if first in KINDS:
        name, *steps = steps
        if name not in tree.types(first):
            known = tree.types(first)
            raise RegistryError(
                f"no {KINDS[first]} is called `{name}`; {did_you_mean(name, known, _known(known))}"
            )
        schema, seen = tree.expand({"$ref": f"#/$defs/{first}.{name}"}, {"type": name}), f"{first}.{name}"
    else:
        schema, seen, steps = tree.expand(root, {}), "", [first, *steps]
    for step in steps:
        schema = _child(tree, schema, step, seen, topic)
        seen += ("." if seen else "") + step
    return _described(tree, schema, seen, width)


def listing(kind: str, root: Schema, width: int = 80) -> str:
    """Return the parts of a kind, one line each."""
    tree = SchemaTree(root)
    names = tree.types(kind)
    column = max(map(len, names), default=0)
    lines = []
    for name in names:
        about = _summary(tree.expand({"$ref": f"#/$defs/{kind}.{name}"}, {"type": name}))
        line = f"{_INDENT}{name:<{column}}  {about}"
        lines.append(line if len(line) <= width else f"{line[: width - 3]}...")
    return "\n".join((f"{kind}:", *lines)) + "\n"


def type_of(schema: Schema) -> str:
    """Return the type, range or choices of an option in words."""
    if "enum" in schema:
        return " | ".join(
            json.dumps(value) if not isinstance(value, str) else value for value in schema["enum"]
        )
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema and all("type" in branch or "enum" in branch for branch in schema["anyOf"]):
        return " or ".join(dict.fromkeys(map(type_of, schema["anyOf"])))
    if "$ref" in schema:
        return KINDS.get(schema["$ref"].removeprefix("#/$defs/"), "part")
    kinds = schema.get("type", "value")
    words = [_word(kind, schema) for kind in (kinds if isinstance(kinds, list) else [kinds])]
    return " or ".join(words)


def _word(kind: str, schema: Schema) -> str:
    if kind == "array":
        items = schema.get("items", {})
        return f"list of {type_of(items)}" if items else "list"
    if kind == "object":
        other = schema.get("additionalProperties")
        return f"mapping of names to {type_of(other)}" if isinstance(other, Mapping) else "mapping"
    if kind in ("integer", "number"):
        return kind + _range(schema)
    return {"string": "text", "boolean": "true | false"}.get(kind, kind)


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    limits = [
        f"{sign} {limit:g}"
        for sign, limit in ((">=", low), (">", above), ("<=", high), ("<", below))
        if limit is not None
    ]
    return f" {', '.join(limits)}" if limits else ""


def _child(tree: SchemaTree, schema: Schema, step: str, seen: str, topic: str) -> dict[str, Any]:
    """Return the schema of a key, or of an item or entry of any name."""
    properties = schema.get("properties", {})
    if step in properties:
        return tree.expand(properties[step], {})
    for key in ("items", "additionalProperties"):
        inner = schema.get(key)
        if isinstance(inner, Mapping) and (key == "additionalProperties" or step.isdigit()):
            return tree.expand(inner, {})
        if isinstance(inner, Mapping) and step in tree.expand(inner, {}).get("properties", {}):
            return tree.expand(tree.expand(inner, {})["properties"][step], {})
    known = list(properties)
    if not seen:
        places = [
            *(f"{kind}.{step}" for kind in KINDS if step in tree.types(kind)),
            *_paths(tree, schema, step),
        ]
        if places:
            raise RegistryError(
                f"there is no topic `{topic}`; did you mean {', '.join(f'`{p}`' for p in places)}?"
            )
        known = [*known, *KINDS, *(code.split(" ")[0] for code in CODES)]
    meant = near(step, known)
    where = f"`{seen}` has no option `{step}`" if seen else f"there is no topic `{topic}`"
    cure = f"did you mean `{meant}`?" if meant else _known(known)
    raise RegistryError(f"{where}; {cure}")


def _known(names: list[str]) -> str:
    return f"known: {', '.join(names)}" if names else "it has no options"


def _paths(tree: SchemaTree, schema: Schema, name: str, path: str = "", depth: int = 4) -> Iterator[str]:
    """Yield the dotted paths of sections and options called `name`."""
    for key, child in tree.expand(schema, {}).get("properties", {}).items():
        here = f"{path}.{key}" if path else key
        if key == name and path:
            yield here
        if depth:
            yield from _paths(tree, child, name, here, depth - 1)


def _described(tree: SchemaTree, schema: Schema, seen: str, width: int) -> str:
    about = [schema[key] for key in ("description", "x-about") if schema.get(key)]
    kind = next(
        (
            kind
            for kind in tree.kinds()
            if schema.get("properties", {}).get("type", {}).get("enum") == tree.types(kind)
        ),
        None,
    )
    parts = [_wrapped(text, width) for text in dict.fromkeys(about)]
    if kind is not None:
        return "\n\n".join([*parts, listing(kind, tree.root, width)])
    properties = schema.get("properties", {})
    if not properties:
        facts = [f"type: {type_of(schema)}"]
        if "default" in schema or nullable(schema):
            facts.append(f"default: {json.dumps(schema.get('default'))}")
        return "\n\n".join([*parts, "\n".join(facts)]) + "\n"
    lines = []
    for name, option in properties.items():
        needed = name in schema.get("required", ()) or "const" in option
        default = "required" if needed else f"default {json.dumps(option.get('default'))}"
        lines.append(f"{name}: {type_of(option)} ({default})")
        if text := option.get("description"):
            lines.append(textwrap.indent(_wrapped(text, width - 4), _INDENT * 2))
    parts.append("\n".join(lines))
    for example in schema.get("examples", ()):
        parts.append("example:\n\n" + textwrap.indent(_yaml(example), _INDENT * 2).rstrip())
    return "\n\n".join(parts) + "\n"


def _summary(schema: Schema) -> str:
    return str(schema.get("description", "")).partition("\n")[0]


def _wrapped(text: str, width: int) -> str:
    """Return the text with its paragraphs filled; tables, lists and indented lines stay."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.splitlines()
        if not any(line.startswith((" ", "|", "-")) for line in lines):
            lines = textwrap.wrap(" ".join(lines), width, break_long_words=False)
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


def _yaml(value: Mapping[str, Any]) -> str:
    """Return an example as YAML, its type first."""
    from ruamel.yaml import YAML

    yaml, stream = YAML(), io.StringIO()
    yaml.default_flow_style = None
    yaml.dump({key: value[key] for key in sorted(value, key=lambda key: key != "type")}, stream)
    return stream.getvalue()
