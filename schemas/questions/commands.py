"""Verbs of `policysmith` that need no torch. Each returns an exit code and writes to stdout."""

from __future__ import annotations

import io
import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..composition import resolved
from ..json_schema import SchemaTree, shipped_schema
from ..kinds import KINDS, unlisted_types
from ..origins import origin_of, origins
from ..paths import expanded, replace_text
from ..terminal import printable
from ..yaml.nodes import KeyPath
from . import explanation
from .defaults import with_defaults
from .difference import differences, side

SAME, DIFFERENT = 0, 1


def diff(args: Namespace) -> int:
    """Run `policysmith diff`, which exits with 1 if the sides differ."""
    found = differences(side(Path(args.left)), side(Path(args.right)))
    if args.format == "json":
        sys.stdout.write(json.dumps([difference.to_json() for difference in found], indent=1) + "\n")
    else:
        sys.stdout.writelines(f"{printable(str(difference))}\n" for difference in found)
    return DIFFERENT if found else SAME


def render(args: Namespace) -> int:
    """Run `policysmith render`."""
    document = resolved(args.document)
    sys.stdout.write(rendered(with_defaults(document.value), origins(document) if args.origins else None))
    return 0


def explain(args: Namespace) -> int:
    """Run `policysmith explain`."""
    sys.stdout.write(explanation.explain(args.topic, shipped_schema(), line_width()))
    return 0


def listing(args: Namespace) -> int:
    """Run `policysmith list`."""
    kinds = KINDS if args.kind is None else [args.kind]
    sys.stdout.writelines(explanation.listing(kind, shipped_schema(), line_width()) for kind in kinds)
    return 0


def fmt(args: Namespace) -> int:
    """Run `policysmith fmt`, which with `--check` exits with 1 if a file would change."""
    from ..formatting import formatted
    from ..yaml.document import read

    changed = []
    for name in args.files:
        path = Path(name)
        text = read(path).root.span.source.text or ""
        new = formatted(text, name)
        if name == "-":
            sys.stdout.write(new)
        elif new != text:
            changed.append(name)
            if not args.check:
                replace_text(expanded(path), new)
    for name in changed:
        sys.stdout.write(f"{'would reformat' if args.check else 'reformatted'} {printable(name)}\n")
    return DIFFERENT if changed and args.check else SAME


def migrate(args: Namespace) -> int:
    """Run `policysmith migrate`, which with `--check` exits with 1 if a file would change."""
    from ..composition import composed
    from ..migration import LATEST, migrated
    from ..yaml.document import read

    texts = {}
    for name in args.files:  # all before the first is written, because one may be the base of another
        document = read(Path(name))
        version = composed(document).value.get("recipe")
        texts[name] = (old := document.root.span.source.text or "", *migrated(old, name, version=version))
    out = sys.stderr if args.files == ["-"] else sys.stdout
    for name, (old, new, said) in texts.items():
        if name == "-":
            sys.stdout.write(new)
        elif new != old and not args.check:
            replace_text(expanded(Path(name)), new)
        out.writelines(f"{printable(line)}\n" for line in said)
        change = ("would be migrated" if args.check else "migrated") if new != old else "has version"
        out.write(f"{printable(name)}: {change}{' to' if new != old else ''} {LATEST}\n")
    changed = any(old != new for old, new, _ in texts.values())
    return DIFFERENT if changed and args.check else SAME


def list_runs(args: Namespace) -> int:
    """Run `policysmith runs`."""
    from .runs import find_runs, table

    rows = table(find_runs([expanded(path) for path in args.paths]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(printable("  ".join(cells).rstrip()) + "\n")
    return 0


def completion(args: Namespace) -> int:
    """Run `policysmith completion`."""
    from .completion import SCRIPTS

    sys.stdout.write(SCRIPTS[args.shell])
    return 0


def needs_registry(args: Namespace) -> bool:
    """Return whether a verb concerns parts that the shipped schema does not list: new files, plugins, policies."""
    if "kind" in args:
        kinds = list(KINDS) if args.kind is None else [args.kind]
    elif "topic" in args:
        kinds = [args.topic.partition(".")[0]]
    else:
        return "document" in args and bool(args.document.value.get("imports"))
    tree = SchemaTree(shipped_schema())
    return any(
        kind == "policies" or not set(unlisted_types(kind)) <= set(tree.types(kind))
        for kind in kinds
        if kind in KINDS or "kind" in args
    )


def line_width() -> int:
    """Return the characters of a line of the terminal, at most 100."""
    return min(shutil.get_terminal_size().columns, 100)


def rendered(recipe: Mapping[str, Any], places: Mapping[str, str] | None = None) -> str:
    """Return a recipe as YAML; with its `origins`, comments name the place that sets each value."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    def node(value: Any, path: KeyPath) -> Any:
        if isinstance(value, Mapping) and value:
            mapping = CommentedMap()
            for key, item in value.items():
                mapping[key] = node(item, (*path, key))
                if places is not None and _inline(item):
                    place = origin_of((*path, key), places)
                    mapping.yaml_add_eol_comment(printable(place), key, column=0)
            return mapping
        if isinstance(value, list):
            sequence = CommentedSeq([node(item, (*path, index)) for index, item in enumerate(value)])
            if _inline(value):
                sequence.fa.set_flow_style()
            return sequence
        return value

    yaml = YAML()
    yaml.width = 4096
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    stream = io.StringIO()
    yaml.dump(node(recipe, ()), stream)
    return stream.getvalue()


def _inline(value: Any) -> bool:
    """Return whether a value takes a single line."""
    if isinstance(value, list):
        return not any(isinstance(item, Mapping | list) and item for item in value)
    return not isinstance(value, Mapping) or not value
