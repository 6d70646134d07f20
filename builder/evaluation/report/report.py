"""The files of an evaluation: `report.html` and `result.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from ... import provenance, runs
from ...page import embedded, facts, note, page, section, table
from ...planning.graph import Graph, svg
from ...saved_policy import SavedPolicy
from ..closed_loop import ClosedLoopResult
from ..open_loop import OpenLoopResult
from ..result import EvaluationResult
from ..rollout import Episode
from ..video import FILM_RATE, VIDEO_RATE
from .figures import loss_figure, save_png, steps_figure, to_svg, trace_figure


def write_report(result: EvaluationResult, saved: SavedPolicy, drawing: Graph | None = None) -> None:
    """Write `report.html` and `result.json`, and `open_loop.png` for an open-loop result.

    `drawing` is the graph of a composed policy.

    Files of an earlier evaluation that this one does not write are removed.
    """
    result.output.mkdir(parents=True, exist_ok=True)
    stale = [] if result.open_loop is not None else ["open_loop.png"]
    if result.closed_loop is None or not result.closed_loop.filmed:
        stale += ["rollouts.mp4", "strip.png"]
    for name in stale:
        (result.output / name).unlink(missing_ok=True)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    (result.output / "result.json").write_text(json.dumps(_json(result, saved, when), indent=2) + "\n")
    if result.open_loop is not None:
        save_png(trace_figure(result.open_loop), result.output / "open_loop.png")
    name = saved.recipe["name"]
    body = "\n".join([_header(result, saved, when), *_sections(result, saved, drawing)])
    (result.output / "report.html").write_text(page(f"{name}: evaluation", body))


def _json(result: EvaluationResult, saved: SavedPolicy, when: str) -> dict[str, Any]:
    parts = {"closed_loop": result.closed_loop, "control": result.control, "open_loop": result.open_loop}
    return {
        "policy": saved.recipe["name"],
        "checkpoint": result.checkpoint.name,
        "embodiment": result.embodiment,
        "evaluated": when,
        "command": result.command,
        "training_command": saved.description.get("command"),
        "training_seed": saved.recipe["training"]["seed"],
        "recipe_sha256": saved.content.get("provenance", {}).get("recipe_sha256"),
        "recipe": saved.recipe,
        **{key: part.to_json() if part is not None else None for key, part in parts.items()},
        "notes": list(result.notes),
        "hardware": provenance.hardware(),
        "versions": provenance.machine_versions(),
    }


def _header(result: EvaluationResult, saved: SavedPolicy, when: str) -> str:
    where = f" in {result.closed_loop.env}" if result.closed_loop is not None else ""
    robot = "" if result.embodiment is None else f", {result.embodiment}"
    subtitle = f"{result.checkpoint.name}{robot}{where}, {when[:10]}"
    return f'<h1>{escape(saved.recipe["name"])}</h1><p class="sub">{escape(subtitle)}</p>'


def _sections(result: EvaluationResult, saved: SavedPolicy, drawing: Graph | None) -> Iterator[str]:
    closed, control = result.closed_loop, result.control
    if closed is not None:
        cards = _score("Success", closed, "policy")
        if control is not None:
            cards += _score("Blind control: the same recipe without cameras", control, "control")
        yield f'<div class="scores">{cards}</div>'
        if control is not None:
            yield note(_verdict(closed, control))
        if closed.filmed:
            yield _rollouts(result.output, closed)
        yield _outcomes(closed, control)
    if result.open_loop is not None:
        yield _open_loop(result.open_loop)
    curves = _curves(saved.run, "policy") + (
        _curves(_control_run(result, saved), "blind control") if control else []
    )
    if curves:
        yield section("Training", f'<div class="plot">{to_svg(loss_figure(curves), "loss")}</div>')
    if drawing is not None:
        yield section("Policy", f'<div class="plot graph">{svg(drawing)}</div>')
    if result.notes:
        yield section("Notes", "".join(note(text) for text in result.notes))
    yield _recipe(saved)
    yield section("Reproduction", facts(list(_provenance(result, saved))))


def _score(title: str, result: ClosedLoopResult, tone: str) -> str:
    low, high = (100.0 * end for end in result.interval)
    rate = 100.0 * result.success_rate
    small = f"{result.successes} of {len(result.episodes)} rollouts, 95 % interval {low:.0f} to {high:.0f} %"
    return (
        f'<section class="{tone}"><div class="label">{escape(title)}</div>'
        f'<div class="big">{rate:.0f}<small>%</small></div>'
        f'<div class="track"><i style="left:{low:.1f}%;width:{high - low:.1f}%"></i><b style="left:{rate:.1f}%"></b></div>'
        f"{escape(small)}</section>"
    )


def _verdict(closed: ClosedLoopResult, control: ClosedLoopResult) -> str:
    if closed.interval[0] > control.interval[1]:
        return "The intervals do not overlap: on this task the policy uses its cameras."
    return "The intervals overlap: these rollouts do not show that the policy uses its cameras."


def _rollouts(output: Path, closed: ClosedLoopResult) -> str:
    speed = VIDEO_RATE * max(1, round(closed.fps / FILM_RATE)) / closed.fps
    video = embedded(output / "rollouts.mp4", "video/mp4")
    strip = embedded(output / "strip.png", "image/png")
    text = (
        f"The first {closed.filmed} rollouts at {speed:.2g} times real speed, as seen by "
        "the policy; the border turns green on success and red on failure. Below, one rollout from start to end."
    )
    return section(
        "Rollouts",
        f'<video src="{video}" autoplay muted loop playsinline controls></video>'
        f'<img class="strip" src="{strip}" alt="frames of one rollout, from start to end">{note(text)}',
    )


def _outcomes(closed: ClosedLoopResult, control: ClosedLoopResult | None) -> str:
    body = ""
    for title, result in (("Policy", closed), ("Blind control", control)):
        if result is None:
            continue
        dots = "".join(
            f'<span class="{"won" if one.success else "lost"}" title="{_ended(one)}, seed {one.seed}"></span>'
            for one in result.episodes
        )
        mean = (
            ""
            if result.mean_steps is None
            else f", successes after {result.mean_steps / result.fps:.1f} s on average"
        )
        body += f'<div class="label">{title}{mean}</div><div class="dots">{dots}</div>'
    rows = [[str(one.index), str(one.seed), _ended(one)] for one in closed.episodes]
    for row, other in zip(rows, control.episodes if control is not None else (), strict=False):
        row.append(_ended(other))
    header = ["Episode", "Environment seed", "Policy", *(["Blind control"] if control is not None else [])]
    limit = note(f"A rollout fails after {closed.max_steps} steps, {closed.max_steps / closed.fps:.1f} s.")
    return section(
        "Outcomes", f"{body}<details><summary>Every episode</summary>{table(header, rows)}{limit}</details>"
    )


def _ended(episode: Episode) -> str:
    return f"success after {episode.steps} steps" if episode.success else f"failure at step {episode.steps}"


def _open_loop(result: OpenLoopResult) -> str:
    header = ["Action", "Mean absolute error", "Root mean square error"]
    if result.baseline_mae is not None:
        header.append("Mean action")
    rows = []
    for position, name in enumerate(result.action_names):
        row = [name, f"{result.mae[position]:.4g}", f"{result.rmse[position]:.4g}"]
        rows.append(
            [*row, f"{result.baseline_mae[position]:.4g}"] if result.baseline_mae is not None else row
        )
    seen = ", which it was trained on" if result.split == "training" else ", held out from training"
    count = (
        f"{len(result.episodes)} of {result.available}" if len(result.episodes) < result.available else "all"
    )
    text = (
        f"Chunks predicted at every frame of {count} {result.split} episodes{seen} ({result.frames:,} frames), in the "
        f"robot's units. The plot shows episode {result.trace.episode} with {result.trace.execute} steps from each "
        "chunk; dots mark new predictions."
    )
    plots = to_svg(trace_figure(result), "trace")
    if len(result.mae_by_step) > 1:
        plots += to_svg(steps_figure(result), "steps")
    return section(
        "Predicted and true actions", f'{table(header, rows)}{note(text)}<div class="plot">{plots}</div>'
    )


def _curves(run: Path | None, name: str) -> list[tuple[str, list[int], list[float]]]:
    path = run / runs.LOG if run is not None else None
    if path is None or not path.exists():
        return []
    entries = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    curves = []
    for key, label in (("loss", name), ("validation/loss", f"{name}, validation")):
        points = {
            entry["step"]: entry[key] for entry in entries if entry.get(key) is not None and "step" in entry
        }
        if points:
            curves.append((label, list(points), list(points.values())))
    return curves


def _control_run(result: EvaluationResult, saved: SavedPolicy) -> Path:
    return (saved.run or result.output) / "control"


def _recipe(saved: SavedPolicy) -> str:
    """Return the recipe as written, and as resolved, with overrides and defaults."""
    shown = [(path.name, path.read_text()) for path in _recipe_files(saved.directory)]
    shown = shown or [("", json.dumps(saved.recipe, indent=2))]
    body = f"<pre>{escape(shown[0][1])}</pre>"
    for _, text in shown[1:]:
        summary = "With every default and override"
        body += f"<br><details><summary>{summary}</summary><pre>{escape(text)}</pre></details>"
    return section("Recipe", body)


def _recipe_files(directory: Path) -> list[Path]:
    return [path for name in ("recipe.yaml", "recipe.lock.yaml") if (path := directory / name).is_file()]


def _provenance(result: EvaluationResult, saved: SavedPolicy) -> Iterator[tuple[str, str, bool]]:
    if command := saved.description.get("command"):
        yield "trained by", " ".join(command), True
    yield "evaluated by", result.command, True
    if result.closed_loop is not None:
        seeds = [episode.seed for episode in result.closed_loop.episodes]
        yield (
            "evaluation seed",
            f"{result.closed_loop.seed} (environment seeds {seeds[0]} to {seeds[-1]})",
            False,
        )
        spent = f"{result.closed_loop.seconds:.0f} s in {result.closed_loop.processes} processes"
        yield "rollouts took", f"{spent}, policy on {result.closed_loop.device}", False
    yield "training seed", str(saved.recipe["training"]["seed"]), False
    if digest := saved.content.get("provenance", {}).get("recipe_sha256"):
        yield "recipe SHA-256", digest, True
    for key, value in provenance.hardware().items():
        yield key, value, False
    yield (
        "versions",
        ", ".join(f"{name} {number}" for name, number in provenance.machine_versions().items()),
        False,
    )
