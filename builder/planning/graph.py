"""The graph of a wired policy: what reads what, with shapes and parameters, as Mermaid and as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ...schemas.specs import Spec
from ..policy import RecipePolicy
from ..wiring.parts import Parts
from ..wiring.solve import Wiring
from .policy import PolicyPlan
from .summary import Summary, part_sizes

_WIDTH, _HEIGHT, _ACROSS, _DOWN, _MARGIN = 210, 58, 90, 22, 16
_FILLS = {
    "data": "#e8eef7",
    "transform": "#f3f1e7",
    "backbone": "#e3f2e6",
    "neck": "#efe6f5",
    "head": "#f9e7e4",
}


@dataclass(frozen=True)
class Box:
    """A node: its name, its kind, its column from the left, and its lines of text."""

    name: str
    kind: str
    column: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """Nodes, and edges with the shape that flows along them."""

    boxes: tuple[Box, ...]
    edges: tuple[tuple[str, str, str], ...]


def graph(plan: PolicyPlan, summary: Summary) -> Graph:
    """Return the graph of a wired policy, from the data to the action chunk."""
    return _graph(plan.parts, plan.wiring, summary.parts, summary.trains)


def graph_of(policy: RecipePolicy) -> Graph:
    """Return the graph of a policy that is built already."""
    return _graph(policy.parts, policy.wiring, *part_sizes(policy))


def _graph(parts: Parts, wiring: Wiring, sizes: Mapping[str, int], trained: Mapping[str, int]) -> Graph:
    boxes, edges = list[Box](), list[tuple[str, str, str]]()
    last = _transforms(parts, wiring, boxes, edges)
    start = 1 + bool(parts.transforms)
    depth = dict.fromkeys(parts.backbones, start)
    for name, site in parts.backbones.items():
        boxes.append(_part(f"backbones.{name}", "backbone", start, site.config.type, sizes, trained))
        edges += [(last, f"backbones.{name}", _shape(key, spec)) for key, spec in wiring.reads[name].items()]
    for name, specs in wiring.necks.items():
        depth[name] = 1 + max(depth[key.split(".")[0]] for key in specs)
        kind = parts.necks[name].config.type
        boxes.append(_part(f"necks.{name}", "neck", depth[name], kind, sizes, trained))
        edges += _features(f"necks.{name}", specs, parts.necks)
    column = 1 + max(depth.values())
    boxes.append(_part("head", "head", column, parts.head.config.type, sizes, trained))
    edges += _features("head", wiring.features, parts.necks)
    boxes.append(Box("action", "data", column + 1, ("action chunk", _dims(wiring.action))))
    edges.append(("head", "action", ""))
    return Graph(tuple(boxes), tuple(edges))


def _transforms(parts: Parts, wiring: Wiring, boxes: list[Box], edges: list[tuple[str, str, str]]) -> str:
    names = [_shape(key, spec) for key, spec in wiring.collated.items()]
    boxes.append(Box("data", "data", 0, ("data", *names)))
    if not parts.transforms:
        return "data"
    types = [site.config.type for site in parts.transforms]
    boxes.append(Box("transforms", "transform", 1, ("transforms", *types)))
    edges.append(("data", "transforms", ""))
    return "transforms"


def _part(
    name: str,
    kind: str,
    column: int,
    type_: str,
    sizes: Mapping[str, int],
    trained: Mapping[str, int],
) -> Box:
    count = sizes.get(name, 0)
    share = "" if trained.get(name, 0) == count else f", {trained.get(name, 0):,} trained"
    return Box(name, kind, column, (name, type_, f"{count:,} parameters{share}"))


def _features(
    reader: str, specs: Mapping[str, Spec], necks: Mapping[str, object]
) -> list[tuple[str, str, str]]:
    found = []
    for key, spec in specs.items():
        name, _, output = key.partition(".")
        kind = "necks" if name in necks else "backbones"
        found.append((f"{kind}.{name}", reader, f"{output} {_dims(spec)}"))
    return found


def _shape(key: str, spec: Spec) -> str:
    return f"{key.removeprefix('observation.')} {_dims(spec)}"


def _dims(spec: Spec) -> str:
    return "(" + ", ".join(map(str, spec.dims)) + ")"


def mermaid(drawn: Graph) -> str:
    """Return the graph as a Mermaid flowchart, which GitHub draws in Markdown."""
    numbers = {box.name: f"n{number}" for number, box in enumerate(drawn.boxes)}
    lines = ["flowchart LR"]
    for box in drawn.boxes:
        text = "<br>".join(line.replace('"', "#quot;") for line in box.lines)
        lines.append(f'  {numbers[box.name]}["{text}"]')
    for source, target, label in drawn.edges:
        arrow = f'-- "{label}" -->' if label else "-->"
        lines.append(f"  {numbers[source]} {arrow} {numbers[target]}")
    lines += [f"  style {numbers[box.name]} fill:{_FILLS[box.kind]},stroke:#555" for box in drawn.boxes]
    return "\n".join(lines) + "\n"


def svg(drawn: Graph) -> str:
    """Return the graph as SVG, columns from left to right."""
    places = _places(drawn.boxes)
    width = max(x for x, _, _ in places.values()) + _WIDTH + _MARGIN
    height = max(y + h for _, y, h in places.values()) + _MARGIN
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="system-ui, sans-serif" font-size="11">'
        ),
        (
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0 8 4 0 8z" fill="#555"/></marker></defs>'
        ),
    ]
    seen: dict[tuple[str, str], int] = {}
    for source, target, label in drawn.edges:
        nth = seen[source, target] = seen.get((source, target), -1) + 1
        lines += _edge(places[source], places[target], label, nth)
    for box in drawn.boxes:
        x, y, tall = places[box.name]
        lines.append(
            f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{tall}" rx="6" fill="{_FILLS[box.kind]}" stroke="#555"/>'
        )
        for number, text in enumerate(box.lines):
            weight = ' font-weight="600"' if not number else ""
            lines.append(f'<text x="{x + 10}" y="{y + 18 + 15 * number}"{weight}>{escape(text)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _places(boxes: Sequence[Box]) -> dict[str, tuple[int, int, int]]:
    """Return left edge, top edge and height of each box; columns are centered."""
    columns: dict[int, list[Box]] = {}
    for box in boxes:
        columns.setdefault(box.column, []).append(box)
    tall = {box.name: max(_HEIGHT, 14 + 15 * len(box.lines)) for box in boxes}
    heights = {c: sum(tall[b.name] + _DOWN for b in held) - _DOWN for c, held in columns.items()}
    highest, found = max(heights.values()), dict[str, tuple[int, int, int]]()
    for column, held in columns.items():
        y = _MARGIN + (highest - heights[column]) // 2
        for box in held:
            found[box.name] = (_MARGIN + column * (_WIDTH + _ACROSS), y, tall[box.name])
            y += tall[box.name] + _DOWN
    return found


def _edge(one: tuple[int, int, int], other: tuple[int, int, int], label: str, nth: int) -> list[str]:
    x, y = one[0] + _WIDTH, one[1] + one[2] // 2
    end, down = other[0], other[1] + other[2] // 2
    bend = (x + end) // 2
    path = f'<path d="M{x} {y} C{bend} {y} {bend} {down} {end} {down}" fill="none" stroke="#555" marker-end="url(#arrow)"/>'
    title = f"<title>{escape(label)}</title>" if label else ""
    path = path.replace("/>", f">{title}</path>") if title else path
    text = f'<text x="{x + 4}" y="{y - 5 - 12 * nth}" fill="#333" font-size="9">{escape(label)}</text>'
    return [path, text] if label else [path]


__all__ = ["Box", "Graph", "graph", "mermaid", "svg"]
