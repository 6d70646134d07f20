"""Pages of the site that are made from the schema, the error codes, the recipes and the README, at every build."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import mkdocs_gen_files

from policysmith.schemas.json_schema import Schema, SchemaTree, nullable, shipped_schema
from policysmith.schemas.kinds import KINDS
from policysmith.schemas.questions.codes import PAGES
from policysmith.schemas.questions.explanation import type_of, yaml_text

ROOT = Path(__file__).parents[2]
TREE = SchemaTree(shipped_schema())


def write(name: str, text: str) -> None:
    """Write a page of the site."""
    with mkdocs_gen_files.open(name, "w") as file:
        file.write(text)


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    pieces = " ".join(text.split()).replace("|", "\\|").split("`")
    pieces[::2] = [piece.replace("<", "&lt;") for piece in pieces[::2]]  # those outside of code
    return "`".join(pieces)


def options(schema: Schema) -> Iterator[str]:
    """Yield the rows of a table of the options of a section or part."""
    yield "| option | type | default | meaning |"
    yield "|---|---|---|---|"
    for name, option in schema.get("properties", {}).items():
        if "const" in option:
            continue
        needed = name in schema.get("required", ())
        null = "default" in option or nullable(option)
        default = "required" if needed else f"`{json.dumps(option.get('default'))}`" if null else ""
        about = option.get("description", "") or TREE.expand(option, {}).get("description", "")
        yield f"| `{name}` | {cell(type_of(option))} | {cell(default)} | {cell(about)} |"


def about(schema: Schema) -> str:
    """Return the description of a section or part."""
    texts = [schema[key] for key in ("description", "x-about") if schema.get(key)]
    return "\n\n".join(dict.fromkeys(texts))


def sections(schema: Schema, path: str = "") -> Iterator[str]:
    """Yield a chapter for each section of a recipe."""
    for name, child in schema.get("properties", {}).items():
        inner = TREE.expand(child, {})
        here = f"{path}.{name}" if path else name
        if set(inner.get("properties", ())) - {"type"} and "x-part" not in inner and here != "policy.head":
            yield f"## `{here}`\n\n{about(inner)}\n\n" + "\n".join(options(inner)) + "\n"
            yield from sections(inner, here)


def recipe_page() -> str:
    """Return the reference of a recipe's sections."""
    whole = TREE.expand(TREE.root, {})
    head = "# Fields of a recipe\n\nEvery section and option outside of parts, from the schema that checks recipes.\n"
    return "\n".join([head, "## Top level\n", *options(whole), "", *sections(whole)])


def kind_page(kind: str) -> str:
    """Return the reference of the parts of a kind."""
    lines = [f"# {kind.capitalize()}", ""]
    for name in TREE.types(kind):
        schema = TREE.expand({"$ref": f"#/$defs/{kind}.{name}"}, {"type": name})
        lines += [f"## `{name}`", "", about(schema), "", *options(schema), ""]
        for example in schema.get("examples", ()):
            lines += ["```yaml", yaml_text(example).rstrip(), "```", ""]
    return "\n".join(lines)


def errors_page() -> str:
    """Return the page of all error and warning codes."""
    lines = [
        "# Errors and warnings",
        "",
        "`policysmith explain E003` prints the same. Errors begin with E, warnings with W.",
        "",
    ]
    for code, page in PAGES.items():
        lines += [f"## {code}", "", page.cause, "", page.cure, "", "```yaml", page.example, "```", ""]
    return "\n".join(lines)


def messages_page() -> str:
    """Return recipes with mistakes beside what is said of them, as the tests hold it."""
    lines = ["# Messages", "", "Recipes with mistakes, and the whole answer to each.", ""]
    for path in sorted((ROOT / "tests" / "diagnostics").glob("*.md")):
        text = path.read_text().replace("```errors", "```text")
        lines.append(re.sub(r"^(#+) ", r"#\1 ", text, flags=re.MULTILINE))
    return "\n".join(lines)


def gallery_page() -> str:
    """Return all bundled recipes."""
    lines = [
        "# Recipes",
        "",
        "Every bundled recipe as it is in the repository. Those under `tiny` train on a laptop.",
        "",
    ]
    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        name = path.relative_to(ROOT).as_posix()
        lines += [f"## {name}", "", "```yaml", path.read_text().rstrip(), "```", ""]
    return "\n".join(lines)


def python_page(names: list[str]) -> str:
    """Return the reference of the Python API."""
    return (
        "# Reference of the Python API\n\n" + "\n\n".join(f"::: policysmith.{name}" for name in names) + "\n"
    )


def main() -> None:
    """Write all generated pages."""
    import policysmith

    write("reference/recipe.md", recipe_page())
    for kind in KINDS:
        write(f"reference/{kind}.md", kind_page(kind))
    write("reference/errors.md", errors_page())
    write("reference/messages.md", messages_page())
    write("reference/gallery.md", gallery_page())
    write("reference/python.md", python_page([n for n in policysmith.__all__ if not n.startswith("_")]))
    write("index.md", (ROOT / "README.md").read_text())
    write("contributing.md", (ROOT / "CONTRIBUTING.md").read_text())


main()
