"""Proof that each head learns: closed-loop success of a recipe on few demonstrations, beside its blind control.

    python benchmarks/learning.py --output benchmarks/results/learning.json

A row is a recipe with an `evaluation` section: `recipes/vit_mlp.yaml` and `recipes/push_vit_mlp.yaml`, the baselines, and
all of `recipes/learning`. What a row does is what these commands do:

    build-and-train RECIPE --output runs/learning/NAME -o training.precision=fp32
    policysmith evaluate runs/learning/NAME --control blind

Rows run side by side, each in a process of its own. A row that is done is not done again: delete its run to repeat it.
The demonstrations of push-v3 are recorded first where they are missing. With `--record` those of both tasks are recorded
anew: graphics drivers differ in how they draw, and a policy must be judged with the one its demonstrations were drawn by.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATASETS = ROOT / "recipes" / "datasets"
DEMONSTRATIONS = {
    "drawer_open": ("metaworld/drawer-open-v3", 50, 96),
    "push": ("metaworld/push-v3", 200, 128),
}
"""Task, episodes and pixels a side, by name of the dataset."""
BASELINES = {"vit_mlp": "drawer_open", "push_vit_mlp": "push"}
"""Recipes of the MLP head, and their datasets."""
DONE = "row.json"


class RowError(Exception):
    """Raised when a row fails."""


def main() -> None:
    arguments = parse()
    recipes = [
        *(ROOT / "recipes" / f"{name}.yaml" for name in BASELINES),
        *sorted((ROOT / "recipes" / "learning").glob("*.yaml")),
    ]
    chosen = [path for path in recipes if not arguments.only or path.stem in arguments.only]
    if unknown := set(arguments.only) - {path.stem for path in chosen}:
        raise SystemExit(f"there is no recipe called {', '.join(sorted(unknown))}")
    os.environ["OMP_NUM_THREADS"] = "1"  # as many processes as cores; see --rows and --processes
    if arguments.row:
        run_row(chosen[0], arguments)
        return
    rows, failed = [], False
    with ThreadPoolExecutor(2 * arguments.rows) as pool:
        recorded = {name: pool.submit(record, name, arguments) for name in {dataset(path) for path in chosen}}
        slots = BoundedSemaphore(arguments.rows)

        def row(path: Path) -> dict[str, Any]:
            recorded[dataset(path)].result()
            with slots:
                return start_row(path, arguments)

        for future in as_completed([pool.submit(row, path) for path in chosen]):
            try:
                rows.append(future.result())
            except RowError as error:
                failed = True
                tell(str(error))
                continue
            tell(line(rows[-1]))
            write(arguments, sorted(rows, key=lambda row: (row["task"], recipes.index(ROOT / row["recipe"]))))
    raise SystemExit(failed)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="recipes, by file name")
    parser.add_argument("--rows", type=int, default=1, help="rows at a time (default: 1)")
    parser.add_argument("--processes", type=int, default=4, help="rollouts at a time in a row (default: 4)")
    parser.add_argument("--device", help="where policies are trained (default: the best there is)")
    parser.add_argument(
        "--rollout-device", default="cpu", help="where they compute in rollouts (default: cpu)"
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "learning", help="where the runs go")
    parser.add_argument("--record", action="store_true", help="record the demonstrations of both tasks anew")
    parser.add_argument("--steps", type=int, help="training steps, for a trial")
    parser.add_argument("--episodes", type=int, help="rollouts, for a trial")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def dataset(recipe: Path) -> str:
    """Return the name of the demonstrations of a recipe."""
    return BASELINES.get(recipe.stem) or ("push" if recipe.stem.startswith("push") else "drawer_open")


def demonstrations(name: str, arguments: argparse.Namespace) -> Path:
    """Return the path of the demonstrations of a task, which may not exist yet."""
    return (arguments.runs.resolve() / "datasets" if arguments.record else DATASETS) / name


def record(name: str, arguments: argparse.Namespace) -> None:
    """Record the demonstrations of a task if they are missing."""
    task, episodes, pixels = DEMONSTRATIONS[name]
    output = demonstrations(name, arguments)
    if output.exists():
        return
    command = [
        "policysmith", "data", "record", "--env", task, "--episodes", str(episodes), "--image-size", str(pixels),
        "--workers", str(arguments.processes), "--output", str(output),
    ]  # fmt: skip
    run_cli(command)


def run_cli(command: list[str]) -> None:
    function = command[0].replace("-", "_")
    code = (
        f"import sys; from policysmith.schemas.console import {function}; sys.exit({function}(sys.argv[1:]))"
    )
    subprocess.run([sys.executable, "-c", code, *command[1:]], cwd=ROOT, check=True)


def start_row(recipe: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return a row from its own process, or the existing one."""
    run = arguments.runs.resolve() / recipe.stem
    if not done(run, recipe, arguments):
        run.mkdir(parents=True, exist_ok=True)
        options = ["--record"] if arguments.record else []
        options += [
            f"--{name.replace('_', '-')}={value}"
            for name in ("runs", "processes", "device", "rollout_device", "steps", "episodes")
            if (value := getattr(arguments, name)) is not None
        ]
        command = [sys.executable, __file__, "--row", "--only", recipe.stem, *options]
        with (run / "row.log").open("w") as log:
            code = subprocess.run(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False
            ).returncode
        if code:
            raise RowError(f"{recipe.stem} failed:\n{(run / 'row.log').read_text()[-3000:]}")
    row: dict[str, Any] = json.loads((run / DONE).read_text())
    return row


def done(run: Path, recipe: Path, arguments: argparse.Namespace) -> bool:
    """Return whether the row exists and was made from the current recipe, with as many steps and rollouts."""
    if not (run / DONE).exists():
        return False
    trial = json.loads((run / DONE).read_text())["trial"]
    same = (run / "recipe.yaml").read_text() == recipe.read_text()
    return same and trial == {"steps": arguments.steps, "episodes": arguments.episodes}


def run_row(recipe: Path, arguments: argparse.Namespace) -> None:
    """Train policy and control of a row side by side, then evaluate one after the other; runs in the row's process."""
    from policysmith.builder import Builder
    from policysmith.builder.evaluation import evaluate_closed_loop
    from policysmith.builder.provenance import hardware, machine_versions

    run = arguments.runs.resolve() / recipe.stem
    changes: dict[str, Any] = {"training.precision": "fp32"}
    if arguments.steps:
        changes["training.steps"] = arguments.steps
    if arguments.record:
        changes["data.path"] = os.path.relpath(demonstrations(dataset(recipe), arguments), recipe.parent)
    builder = Builder.from_recipe(recipe).override(changes).check()
    section, evaluation = builder.recipe.sections.training, builder.recipe.sections.evaluation
    assert evaluation is not None
    assert builder.summary is not None
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(train, recipe, changes, run, sighted, arguments.device) for sighted in (True, False)
        ]
        seconds, seconds_of_control = [job.result() for job in jobs]
    judge = partial(
        evaluate_closed_loop,
        env=evaluation.env,
        episodes=arguments.episodes or evaluation.episodes,
        seed=evaluation.seed,
        device=arguments.rollout_device,
        processes=arguments.processes,
    )
    closed = judge(run)
    control = judge(run / "control")
    command = f"build-and-train {recipe.relative_to(ROOT)} --output runs/learning/{recipe.stem}"
    row = {
        "recipe": str(recipe.relative_to(ROOT)),
        "task": closed.env,
        "policy": outcome(closed),
        "blind": outcome(control),
        "parameters": builder.summary.parameters,
        "steps": section.steps,
        "batch_size": section.batch_size,
        "precision": "fp32",
        "training_seconds": round(seconds, 1),
        "control_training_seconds": round(seconds_of_control, 1),
        "rollout_seconds": round(closed.seconds + control.seconds, 1),
        "final_loss": last_loss(run),
        "trial": {"steps": arguments.steps, "episodes": arguments.episodes},
        "hardware": hardware(),
        "versions": machine_versions(),
        "commands": [
            " ".join([command, *(f"-o {key}={value}" for key, value in changes.items())]),
            f"policysmith evaluate runs/learning/{recipe.stem} --control blind --device {closed.device}",
        ],
    }
    (run / DONE).write_text(json.dumps(row, indent=2) + "\n")


def train(recipe: Path, changes: dict[str, Any], run: Path, sighted: bool, device: str | None) -> float:
    """Train the policy of a recipe, or its control, in a separate process; return the seconds."""
    from policysmith.builder import Builder
    from policysmith.builder.evaluation import blind
    from policysmith.schemas.yaml.document import from_mapping

    builder = Builder.from_recipe(recipe).override(changes)
    if not sighted:
        names = [name for name, _ in builder.build("meta").named_parameters()]
        unseeing = blind(builder.recipe.resolved(), names)
        builder = Builder.from_recipe(
            from_mapping(unseeing, "the blind control", directory=builder.recipe.directory)
        )
    start = time.perf_counter()
    builder.train(output=run if sighted else run / "control", resume=True, device=device)
    return time.perf_counter() - start


def tell(message: str) -> None:
    sys.stdout.write(f"{message}\n")
    sys.stdout.flush()


def outcome(result: Any) -> dict[str, Any]:
    """Return the successes with Wilson's interval, and the failed episodes."""
    return {
        "successes": result.successes,
        "n": len(result.episodes),
        "interval_95": [round(end, 3) for end in result.interval],
        "failed": [episode.index for episode in result.episodes if not episode.success],
        "mean_steps_of_successes": result.mean_steps,
        "seed": result.seed,
    }


def last_loss(run: Path) -> float:
    lines = [json.loads(text) for text in (run / "log.jsonl").read_text().splitlines()]
    return float([entry["loss"] for entry in lines if "loss" in entry][-1])


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    cells = [
        f"`{Path(row['recipe']).stem}`",
        row["task"].removeprefix("metaworld/"),
        f"{row['steps']} x {row['batch_size']}",
        f"{row['training_seconds'] / 60:.1f} min",
        shown(row["policy"]),
        shown(row["blind"]),
    ]
    return f"| {' | '.join(cells)} |"


def shown(result: dict[str, Any]) -> str:
    low, high = result["interval_95"]
    rate = result["successes"] / result["n"]
    return f"{result['successes']}/{result['n']} = {rate:.0%} ({100 * low:.0f}-{100 * high:.0f} %)"


def write(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    if arguments.output is None:
        return
    words = [word for word in sys.argv[1:] if word]
    content = {
        "what": (__doc__ or "").splitlines()[0],
        "command": f"python benchmarks/learning.py {shlex.join(words)}",
        "rows_at_a_time": arguments.rows,
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
