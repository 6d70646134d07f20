r"""A whole evaluation of a policy: numbers, video, plots and a report.

    result = evaluate("runs/vit_mlp")
    print("\n".join(result.lines))

Prints nothing; `progress` receives a line now and then.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...schemas.errors import CheckpointError, DatasetError, SpecError
from ...schemas.paths import exists, expanded
from ...schemas.specs import Kind
from ..data.dataset import LeRobotDataset, inspect
from ..data.doctor.reading import readable
from ..data.lerobot.files import read_json
from ..data.lerobot.layout import read_layout
from ..data.mixture import RobotDataset
from ..data.selection import matching
from ..data.splits import split_episodes
from ..planning.checks.compatibility import check_dataset
from ..planning.graph import graph_of
from ..policy import BasePolicyModel, RecipePolicy
from ..saved_policy import SavedPolicy, choose_device
from .blind_control import BlindControl
from .closed_loop import ClosedLoopResult, evaluate_closed_loop
from .open_loop import OpenLoopResult, evaluate_open_loop
from .report.report import write_report
from .result import EvaluationResult
from .rollout import Episode

Progress = Callable[[str], None]
Control = Literal["none", "blind"]

OPEN_LOOP_EPISODES = 20
"""Maximum number of episodes of an open-loop evaluation, evenly spaced over the split."""


def evaluate(
    run_or_checkpoint: str | Path,
    *,
    env: str | None = None,
    embodiment: str | None = None,
    episodes: int | None = None,
    seed: int | None = None,
    control: Control | None = None,
    open_loop: bool = False,
    output: str | Path | None = None,
    device: str | None = None,
    allow_imports: bool = False,
    verify: bool = True,
    processes: int | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Evaluate the newest policy of a run, or the policy of a checkpoint.

    Omitted arguments come from the `evaluation` section of its recipe. A blind control is trained once, in
    `<run>/control`.

    Args:
        run_or_checkpoint: Directory of a run or a checkpoint.
        env: Environment, such as `metaworld/drawer-open-v3`.
        embodiment: Robot to evaluate, for a policy for several.
        episodes: Number of rollouts.
        seed: Seed of the first rollout.
        control: Whether a blind control is evaluated as well.
        open_loop: Skip the rollouts; no simulator runs.
        output: Directory of the report; by default `<run>/evaluation`, with a subfolder for one of several
            robots.
        device: Device of the policy; by default the best one available.
        allow_imports: Run the Python files that the recipe imports.
        verify: Compare the files of the checkpoint with their digests.
        processes: Number of rollout processes.
        progress: Receives a line now and then.

    Raises:
        CheckpointError: There is no policy, its files are not the saved ones, or it cannot be evaluated on
            anything.
        SpecError: The policy does not fit the environment or the dataset.
        OSError: The report cannot be written.
        RecipeError, SimulatorError, TrainingError: Loading, simulating or training the control fails.
    """
    tell = progress or (lambda message: None)
    saved = SavedPolicy.find(run_or_checkpoint, verify=verify)
    section: dict[str, Any] = saved.recipe.get("evaluation") or {}
    plan = _Plan(
        env=None if open_loop else env or section.get("env"),
        embodiment=embodiment or section.get("embodiment"),
        episodes=episodes or section.get("episodes", 50),
        seed=section.get("seed", 10_000) if seed is None else seed,
        control=control or section.get("control", "none"),
        open_loop=open_loop,
        device=choose_device(device),
        allow_imports=allow_imports,
        processes=processes,
    )
    saved.robot(plan.embodiment)
    output = expanded(output) if output else _default_output(saved, plan.embodiment)
    _require_writable(output)
    saved.run_imports(allowed=allow_imports)
    policy = saved.load(plan.device)
    blind = None
    if plan.env is not None and plan.control == "blind":
        names = [name for name, _ in policy.named_parameters()]
        home = (saved.run or output) / "control"
        blind = BlindControl.plan(saved, names, home, allow_imports=allow_imports)
        if not blind.trained:
            _require_writable(home)
    rollouts = {"env": env, "episodes": episodes, "seed": seed, "control": control} if open_loop else {}
    unused = ", ".join(f"`{name}`" for name, value in rollouts.items() if value is not None)
    notes = [f"{unused} had no effect without rollouts; omit `open_loop` to simulate."] if unused else []
    judged, remarks = _open_loop(saved, policy, plan.embodiment, tell, required=plan.env is None)
    notes += remarks
    drawing = graph_of(policy) if isinstance(policy, RecipePolicy) else None
    del policy
    closed = unseeing = None
    if plan.env is not None:
        closed = plan.closed_loop(saved.directory, "closed loop", tell, video=output / "rollouts.mp4")
        notes += closed.notes
        if blind is not None:
            unseeing = plan.closed_loop(blind.train(device, tell), "blind control", tell)
    if closed is None and judged is None:
        raise CheckpointError(
            f"there is nothing to evaluate {run_or_checkpoint} on: {' '.join(notes)} "
            "Name an environment (`--env metaworld/drawer-open-v3`), or add an `evaluation` section to the recipe"
        )
    result = EvaluationResult(
        saved.directory,
        output,
        plan.command(run_or_checkpoint),
        closed,
        unseeing,
        judged,
        tuple(notes),
        plan.embodiment,
        closed is not None and _goals_are_new(saved, plan.embodiment, closed),
    )
    write_report(result, saved, drawing)
    return result


@dataclass(frozen=True)
class _Plan:
    env: str | None
    embodiment: str | None
    episodes: int
    seed: int
    control: Control
    open_loop: bool
    device: str
    allow_imports: bool
    processes: int | None

    def closed_loop(
        self, policy: Path, title: str, tell: Progress, video: Path | None = None
    ) -> ClosedLoopResult:
        assert self.env is not None
        tell(f"{title}: {self.episodes} rollouts in {self.env}")
        successes, done = 0, 0

        def watch(episode: Episode) -> None:
            nonlocal successes, done
            successes, done = successes + episode.success, done + 1
            if done % max(1, self.episodes // 5) == 0 and done < self.episodes:
                tell(f"{title}: {successes} of {done} succeeded")

        return evaluate_closed_loop(
            policy,
            env=self.env,
            embodiment=self.embodiment,
            episodes=self.episodes,
            seed=self.seed,
            processes=self.processes,
            device=self.device,
            video=video,
            strip=video.with_name("strip.png") if video is not None else None,
            allow_imports=self.allow_imports,
            verify=False,  # already verified
            watch=watch,
        )

    def command(self, source: str | Path) -> str:
        words = ["policysmith evaluate", str(source)]
        if self.open_loop:
            words.append("--open-loop")
        elif self.env is not None:
            words += [f"--env {self.env}", f"--episodes {self.episodes}", f"--seed {self.seed}"]
            words.append(f"--control {self.control}")
        if self.embodiment is not None:
            words.append(f"--embodiment {shlex.quote(self.embodiment)}")
        words.append(f"--device {self.device}")
        return " ".join([*words, "--allow-imports"] if self.allow_imports else words)


def _default_output(saved: SavedPolicy, embodiment: str | None) -> Path:
    home = (saved.run or saved.directory) / "evaluation"
    if saved.run is not None and not saved.is_newest:
        home /= saved.directory.name
    return home if embodiment is None else home / re.sub(r"[^\w-]+", "_", embodiment)


def _require_writable(directory: Path) -> None:
    """Raise OSError unless files can be created in a directory, which need not exist yet."""
    nearest = next(path for path in (directory.absolute(), *directory.absolute().parents) if exists(path))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = f"{error.strerror}; choose another `--output`"
        raise OSError(error.errno, reason, str(directory)) from error


def _open_loop(
    saved: SavedPolicy,
    policy: BasePolicyModel,
    embodiment: str | None,
    tell: Progress,
    *,
    required: bool,
) -> tuple[OpenLoopResult | None, list[str]]:
    """Return the open-loop errors, or None if there is no fitting dataset, with notes for the report."""
    section, robot = saved.data_section(embodiment), saved.robot(embodiment)
    path = saved.dataset_path(embodiment)
    try:
        info = inspect(path, section.get("columns"))
        check_dataset(saved, info, section["path"], embodiment)
    except (DatasetError, SpecError) as error:
        if required and isinstance(error, SpecError):
            raise
        return None, [f"No open-loop error: {str(error).rstrip('.')}."]
    try:
        training, validation = _splits(section, path, info.episodes)
    except DatasetError as error:
        return None, [f"No open-loop error: {str(error).rstrip('.')}."]
    split, chosen = ("validation", validation) if validation else ("training", training)
    some = _spaced(chosen, OPEN_LOOP_EPISODES)
    tell(f"open loop: {len(some)} {split} episodes")
    cameras = section.get("cameras")
    renamed = cameras if isinstance(cameras, dict) else {}
    own = saved.specs if robot is None else robot.own
    windows: dict[str, Any] = {
        "columns": section.get("columns"),
        "trim": section.get("trim") is not None,
        "vectors": [key for key, spec in own.items() if spec.kind is Kind.STATE],
        "cameras": list(renamed.values()) or cameras,
        "observation_indices": policy.observation_steps(),
        "action_indices": list(policy.config.transform()[2]),
    }
    notes, before = [], saved.fingerprint(embodiment)
    if before is not None and LeRobotDataset(path, **windows, episodes=training).fingerprint != before:
        notes.append(f"The dataset {section['path']} has changed since the policy was trained on it.")
    dataset = LeRobotDataset(path, **windows, episodes=some)
    result = evaluate_open_loop(
        policy,
        dataset if robot is None else RobotDataset(dataset, robot, renamed),
        split=split,
        available=len(chosen),
        action_names=info.action_names,
        statistics=saved.content["statistics"] if robot is None else saved.content["statistics"][robot.name],
    )
    return result, notes


def _splits(
    section: Mapping[str, Any], path: Path, known: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the training and the validation episodes of a recipe's data section."""
    layout = read_layout(path, section.get("columns"))
    held = [episode for episode in section.get("episodes") or known if episode in set(known)]
    if where := section.get("where"):
        held = list(matching(layout, where, held))
    parts = split_episodes(held, validation_fraction=section["validation"], seed=section["split_seed"])
    if section.get("on_bad_episode") != "skip":
        return parts
    cameras = section.get("cameras") or tuple(layout.cameras)
    good, _ = readable(layout, held, tuple(cameras.values()) if isinstance(cameras, dict) else cameras)
    training, validation = (tuple(episode for episode in part if episode in set(good)) for part in parts)
    return training, validation


def _spaced(episodes: tuple[int, ...], count: int) -> tuple[int, ...]:
    if len(episodes) <= count:
        return episodes
    return tuple(episodes[i * len(episodes) // count] for i in range(count))


def _goals_are_new(saved: SavedPolicy, embodiment: str | None, closed: ClosedLoopResult) -> bool:
    """Return whether the seeds of the recording are known and differ from those of all rollouts."""
    path = saved.dataset_path(embodiment) / "meta" / "recording.json"
    if not path.is_file():
        return False
    try:
        recording = read_json(path)
    except DatasetError:
        return False
    used, seeds = {episode.seed for episode in closed.episodes}, recording.get("episode_seeds")
    return (
        recording.get("environment") == closed.env
        and isinstance(seeds, list)
        and not any(seed in used for seed in seeds if isinstance(seed, int))
    )
