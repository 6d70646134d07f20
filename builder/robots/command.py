"""The command `policysmith rollout`."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ...components.embodiments import EMBODIMENT
from ...schemas.errors import SpecError
from ...schemas.paths import expanded
from ...schemas.specs import IMAGES
from ..cli import console, set_up_logging
from ..data.signals import Signals
from ..display import shown
from ..evaluation.closed_loop import wilson
from ..inference.runner import Runner
from ..planning.checks.compatibility import Needs, Reordering, Scene, check_scene, needs_of
from ..policy.acting.asynchronous import AsyncPolicy, DelayedWorker, Local, Thinker
from ..saved_policy import SavedPolicy, choose_device
from ..serving.client import RemotePolicy
from ..serving.thinking import Remote
from ..simulation.seeds import evaluation_seed
from .base import Robot
from .clock import WallClock
from .loop import Actor, Interface, RobotEpisode, drive
from .recording import Recording
from .simulated import open_robot


def rollout(args: Namespace) -> int:
    """Run `policysmith rollout`."""
    set_up_logging()
    with (
        _policy(args) as (policy, needs),
        closing(open_robot(args.robot, image_size=_image_size(args, needs))) as robot,
    ):
        actor = _ahead(args, policy, robot)
        interface, notes = fitted(needs, robot)
        for note in notes:
            console.print(note, markup=False)
        record = nullcontext(None) if args.record is None else Recording(expanded(args.record), robot)
        done: list[RobotEpisode] = []
        try:
            with record as recording:
                for index in range(args.episodes):
                    episode = drive(
                        robot,
                        actor,
                        index=index,
                        seed=evaluation_seed(args.seed, index),
                        interface=interface,
                        max_steps=args.max_steps,
                        clamp=args.clamp,
                        watchdog=args.watchdog,
                        recording=recording,
                    )
                    done.append(episode)
                    console.print(described(episode), markup=False)
        finally:
            if done:
                console.print(summary(done, policy, actor), markup=False)
            if args.record is not None and (kept := expanded(args.record)).is_dir():
                console.print(f"recorded {shown(kept)}", markup=False)
    return 0


def fitted(needs: Needs, robot: Robot) -> tuple[Interface, tuple[str, ...]]:
    """Return the conversions between a robot and a policy, and notes on them.

    Raises:
        SpecError: They do not fit.
    """
    scene = Scene(
        name=robot.name,
        cameras=robot.cameras,
        state_dim=len(robot.state_names),
        action_dim=len(robot.action_names),
        fps=int(robot.fps),
        max_steps=robot.max_steps,
        task=robot.task,
        state_names=robot.state_names or None,
        action_names=robot.action_names,
    )
    check_scene(needs, scene)
    order = Reordering.of(needs, scene)
    return Interface(lambda seen: needs.select(order.observation(seen)), order.command), order.notes


def described(episode: RobotEpisode) -> str:
    """Return a line about an episode."""
    counts = {
        "dropped": episode.dropped,
        "clamped": episode.clamped,
        "by hand": episode.interventions,
        "stops by the watchdog": episode.stalls,
    }
    rest = "".join(f", {count} {name}" for name, count in counts.items() if count)
    return f"episode {episode.index}: {episode.end} after {episode.steps} steps{rest}"


def summary(episodes: list[RobotEpisode], policy: Actor, actor: Actor) -> str:
    """Return a line about all episodes."""
    successes = sum(episode.success for episode in episodes)
    low, high = wilson(successes, len(episodes))
    again = policy.reconnections if isinstance(policy, RemotePolicy) else 0
    more = f"; {again} lost connections were opened again" if again else ""
    if isinstance(actor, AsyncPolicy):
        more += f"; thinking took {actor.delay} steps, and {actor.misses} steps had no action in time"
    return (
        f"success {successes} of {len(episodes)}, 95 % interval {100 * low:.0f} to {100 * high:.0f} %{more}"
    )


def _ahead(args: Namespace, policy: Actor, robot: Robot) -> Actor:
    """Return the policy, or one that thinks ahead."""
    simulated = not isinstance(robot.clock, WallClock)
    if args.think_ahead is None:
        if args.simulated_delay:
            raise SpecError("`--simulated-delay` needs `--think-ahead`", help="add `--think-ahead plain`")
        return policy
    if args.simulated_delay and not simulated:
        raise SpecError(
            f"{args.robot} is not simulated, so its delays are real", help="leave `--simulated-delay` out"
        )
    continues = args.think_ahead == "continue"
    thinker: Thinker
    if isinstance(policy, RemotePolicy):
        thinker = Remote(policy, continues=continues)
    else:
        assert isinstance(policy, Runner)
        thinker = Local(policy.policy, policy, continues=continues)
    return AsyncPolicy(thinker, DelayedWorker(args.simulated_delay) if simulated else None, late=args.late)


@contextmanager
def _policy(args: Namespace) -> Iterator[tuple[Actor, Needs]]:
    """Yield the policy, and what it needs."""
    if (args.server is None) == (args.checkpoint is None):
        raise SpecError("name either a run or a server", help="policysmith rollout RUN, or --server URL")
    if args.server is None:
        saved = SavedPolicy.find(args.checkpoint, verify=args.verify)
        saved.run_imports(allowed=args.allow_imports)
        yield saved.load().runner(choose_device(args.device)), needs_of(saved, args.embodiment)
        return
    token = args.token or os.environ.get("POLICYSMITH_TOKEN")
    with RemotePolicy(args.server, token=token, patience=args.patience) as remote:
        yield remote, remote_needs(remote.metadata, args.embodiment)


def remote_needs(metadata: dict[str, Any], embodiment: str | None) -> Needs:
    """Return what the policy of a server needs, under the names of its robots.

    Raises:
        SpecError: The policy is for several robots, and `embodiment` names none of them, or it is for one.
    """
    robots = metadata["robots"]
    if embodiment not in (robots or [None]):
        raise SpecError(
            f"the policy on the server is for {', '.join(map(repr, robots)) or 'one robot'}",
            help=f"name one of them with `--{EMBODIMENT}`" if robots else f"leave `--{EMBODIMENT}` out",
        )
    sent = metadata["observation"].values()
    images = {entry["key"]: entry["shape"] for entry in sent if entry["kind"] == "image"}
    return Needs(
        cameras={key.removeprefix(IMAGES): (shape[1], shape[2]) for key, shape in images.items()},
        vectors={entry["key"]: entry["shape"][0] for entry in sent if entry["kind"] == "state"},
        action_dim=metadata["action_dim"][embodiment or ""],
        embodiment=embodiment,
        names={},
        signals=Signals.from_json(metadata["signals"][embodiment or ""]),
    )


def _image_size(args: Namespace, needs: Needs) -> int | None:
    """Return the side of a simulator's images; a robot of a file has its own."""
    return None if Path(args.robot.rpartition(":")[0]).suffix == ".py" else needs.image_size


__all__ = ["rollout"]
