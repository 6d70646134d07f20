"""Success of a policy that thinks for a number of control steps: synchronous, ahead, guided, and trained for it.

    nice -n 10 python benchmarks/delays.py --output benchmarks/results/2026-12-cpu/delays.json

The task is push-v3 of Meta-World, without rendering: the state holds hand, gripper, puck and goal, so that two CPU cores
suffice. Two policies learn from the same demonstrations, in which the expert is disturbed and recovers; they differ in
`head.delay` alone. Each row is a way to act under a delay of so many steps:

    synchronous   the arm stands still while a chunk is predicted, which then begins with its first action
    plain         the old chunk runs on meanwhile; the new one does not know of it
    guided        the new chunk is guided towards the old one (real-time chunking)
    trained       the new chunk was trained to be given the actions that run meanwhile

`jump` is the mean change of an action from one step to the next, in units of the actions' range, at the steps at which a new
chunk begins, beside that at all others.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policysmith.builder import Builder
from policysmith.builder.data.writing.record import attempt
from policysmith.builder.data.writing.writer import LeRobotWriter
from policysmith.builder.evaluation.closed_loop import wilson
from policysmith.builder.inference.runner import Runner
from policysmith.builder.policy.acting.asynchronous import AsyncPolicy, DelayedWorker, Local
from policysmith.builder.provenance import hardware, machine_versions
from policysmith.builder.saved_policy import load
from policysmith.builder.simulation.metaworld import MetaWorldEnvironment
from policysmith.builder.simulation.seeds import demonstration_seed, evaluation_seed

TASK, DEMONSTRATIONS, NOISE = "push-v3", 120, 0.3
DELAYS, MOST = (0, 1, 2, 4, 8), 8
WAYS = ("synchronous", "plain", "guided", "trained")
SEED, LIMIT = 10_000, 250
RECIPE: dict[str, Any] = {
    "recipe": 1,
    "data": {"horizon": 16},
    "policy": {
        "execute": 8,
        "backbones": {"proprio": {"type": "mlp", "hidden": [256], "width": 128}},
        "head": {
            "type": "flow_matching",
            "network": {"type": "dit", "width": 64, "depth": 2, "heads": 4, "mlp_ratio": 2.0},
            "predicts": "action",
            "repeats": 2,
            "steps": 5,
        },
    },
    "transforms": [{"type": "normalize", "mode": "mean_std"}],
    "training": {
        "steps": 3000,
        "batch_size": 128,
        "precision": "fp32",
        "optimizer": {"lr": 1.0e-3, "weight_decay": 1.0e-4},
        "schedule": {"type": "cosine", "warmup": 100},
        "ema": 0.99,
    },
}


class StateOnly(MetaWorldEnvironment):
    """The task with puck and goal in the state, and without images."""

    cameras = ()
    state_names = (
        *MetaWorldEnvironment.state_names,
        "puck_x",
        "puck_y",
        "puck_z",
        "goal_x",
        "goal_y",
        "goal_z",
    )
    state_dim = len(state_names)

    def __init__(self) -> None:
        super().__init__(TASK, image_size=1, render=False)

    def _observe(self) -> dict[str, Any]:
        assert self._full is not None
        state = np.concatenate([self._full[:7], self._full[36:39]]).astype(np.float32)
        return {"observation.state": state, "task": self.task}


class Standing:
    """A policy that stands still for so many steps before each chunk, which it predicts from what it saw before."""

    def __init__(self, runner: Runner, delay: int) -> None:
        self._thinker, self._delay = Local(runner.policy, runner), delay
        self._still = torch.zeros(4)
        self._actions: list[Tensor] = []

    def select_action(self, observation: dict[str, Any]) -> Tensor:
        """Return the next action (4,), zero but for the gripper while thinking."""
        if not self._actions:
            chunk = self._thinker.think(self._thinker.observe(observation), None, 0, False)
            self._actions = [self._still] * self._delay + list(chunk[: self._thinker.execute])
        action = self._actions.pop(0)
        self._still = torch.cat([torch.zeros(3), action[3:]])
        return action

    def reset(self) -> None:
        """Begin a new episode."""
        self._actions, self._still = [], torch.zeros(4)
        self._thinker.reset()


def main() -> None:
    """Record, train, roll out, and write every row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the rows")
    parser.add_argument("--runs", type=Path, default=Path("runs/delays"), help="where data and runs go")
    parser.add_argument("--episodes", type=int, default=50, help="rollouts of each row (default: 50)")
    parser.add_argument("--steps", type=int, help="training steps, for a trial")
    parser.add_argument("--processes", type=int, default=2, help="processes at a time (default: 2)")
    args = parser.parse_args()
    if not (args.runs / "demonstrations").exists():
        record(args.runs / "demonstrations")
    start, rows = time.monotonic(), []
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        jobs = {name: pool.submit(train, args.runs, name, args.steps) for name in ("base", "trained")}
        trained = {name: job.result() for name, job in jobs.items()}
        tasks = [(way, delay) for delay in DELAYS for way in WAYS]
        for row in pool.map(
            roll_out, *zip(*((args.runs, *task, args.episodes) for task in tasks), strict=True)
        ):
            rows.append(row)
            sys.stdout.write(f"{json.dumps(row)}\n")
            sys.stdout.flush()
    result = {
        "what": "Success on push-v3 (state only) by the way to act and the delay in control steps of 1/80 s.",
        "command": f"nice -n 10 python benchmarks/delays.py --output {args.output} --episodes {args.episodes}",
        "recipe": RECIPE,
        "demonstrations": {"episodes": DEMONSTRATIONS, "noise": NOISE},
        "training": trained,
        "seconds": round(time.monotonic() - start),
        "hardware": hardware(),
        "versions": machine_versions(),
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")


def record(output: Path) -> None:
    """Write the demonstrations of the expert."""
    with (
        closing(StateOnly()) as environment,
        LeRobotWriter(
            output,
            fps=environment.fps,
            cameras={},
            vectors={"observation.state": environment.state_names, "action": environment.action_names},
            robot_type=environment.robot_type,
        ) as writer,
    ):
        kept = tried = 0
        while kept < DEMONSTRATIONS:
            found = attempt(environment, demonstration_seed(0, tried), NOISE)
            tried += 1
            if found.frames is not None:
                kept += 1
                writer.add_episode(environment.task, found.frames)


def train(runs: Path, name: str, steps: int | None) -> dict[str, Any]:
    """Train a policy unless it is there, and return its last loss."""
    torch.set_num_threads(1)
    run = runs.resolve() / name
    if not (run / "done.json").exists():
        changes: dict[str, Any] = {"data.path": str(runs.resolve() / "demonstrations"), "name": name}
        if name == "trained":
            changes["policy.head.delay"] = {"max": MOST}
        if steps:
            changes["training.steps"] = steps
        result = Builder.from_recipe(RECIPE).override(changes).train(output=run)
        (run / "done.json").write_text(json.dumps({"loss": result.loss}))
    done: dict[str, Any] = json.loads((run / "done.json").read_text())
    return done


def roll_out(runs: Path, way: str, delay: int, episodes: int) -> dict[str, Any]:
    """Return the success of one way to act under one delay."""
    torch.set_num_threads(1)
    runner = load(runs / ("trained" if way == "trained" else "base"), device="cpu").runner()
    actor: Standing | AsyncPolicy
    if way == "synchronous":
        actor = Standing(runner, delay)
    else:
        thinker = Local(runner.policy, runner, continues=way != "plain")
        actor = AsyncPolicy(thinker, DelayedWorker(delay))
    lengths, failed, seams, others = [], [], [], []
    with closing(StateOnly()) as environment:
        for index in range(episodes):
            torch.manual_seed(index)
            observation = environment.reset(evaluation_seed(SEED, index))
            actor.reset()
            last = None
            for step in range(LIMIT):
                action = actor.select_action(observation).numpy().clip(-1.0, 1.0)
                begins = (step - delay) % 8 == 0 if way != "synchronous" else step % (8 + delay) == delay
                if last is not None and step > delay:
                    (seams if begins else others).append(float(np.abs(action - last).mean() / 2.0))
                last = action
                result = environment.step(action)
                observation = result.observation
                if result.success:
                    lengths.append(step + 1)
                    break
            else:
                failed.append(index)
    low, high = wilson(len(lengths), episodes)
    return {
        "way": way,
        "delay": delay,
        "successes": len(lengths),
        "n": episodes,
        "interval_95": [round(low, 3), round(high, 3)],
        "mean_steps_of_successes": round(float(np.mean(lengths)), 1) if lengths else None,
        "jump": [round(float(np.mean(seams)), 4), round(float(np.mean(others)), 4)],
        "failed": failed,
    }


if __name__ == "__main__":
    main()
