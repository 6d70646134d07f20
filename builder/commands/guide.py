"""Questions of `policysmith new` on a terminal, for what no flag says."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ...schemas.errors import PolicysmithError
from ...schemas.paths import exists, expanded
from ...schemas.terminal import printable
from ..data.lerobot.info import DatasetInfo, inspect
from ..recipe.draft import Draft, ready_made

T = TypeVar("T")


def guided(args: Namespace, gibibytes: float | None) -> Namespace:
    """Return the flags with the user's answers: dataset, policy and file.

    A wrong answer is explained and asked again; Return takes the proposal in brackets. Raise PolicysmithError
    at the end of the input.
    """

    def dataset(answer: str) -> tuple[str, DatasetInfo]:
        return answer, inspect(expanded(answer))

    data, info = _ask("Directory of a LeRobot dataset", dataset)
    cameras = ", ".join(f"{name} {h} x {w}" for name, (h, w) in info.cameras.items()) or "no cameras"
    tasks = f"{len(info.tasks)} task{'s' * (len(info.tasks) != 1)}"
    _say(f"  {len(info.episodes)} episodes, {sum(info.episode_lengths):,} frames, {tasks}, {cameras}")
    own, base = args.policy, args.base

    def draft(answer: str) -> Draft:
        return Draft.of(Path(data), policy=answer or own, base=base, gibibytes=gibibytes)

    if own is None and base is None:
        _say(f"  policies: {', '.join(ready_made())}")
        proposal = draft("")
        proposed = next(name for name, path in ready_made().items() if path == proposal.base)
        own, chosen = _ask("Policy", lambda answer: (answer, draft(answer)), proposed)
    else:
        chosen = draft("")

    def free(answer: str) -> str:
        if exists(expanded(answer)):
            raise PolicysmithError(f"{answer} exists; choose another file")
        return answer

    out = args.out or _ask("Recipe to write", free, f"{chosen.name}.yaml")
    return Namespace(**{**vars(args), "data": data, "policy": own, "out": out})


def _ask(question: str, accept: Callable[[str], T], proposal: str = "") -> T:
    """Return what `accept` makes of the answer; ask again after a PolicysmithError."""
    while True:
        sys.stderr.write(f"{question}{f' [{printable(proposal)}]' if proposal else ''}: ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise PolicysmithError("the answers ended; name the dataset with `--data DIR` to answer by flags")
        try:
            return accept(line.strip() or proposal)
        except PolicysmithError as error:
            _say(f"  {error}")


def _say(text: str) -> None:
    sys.stderr.write(f"{printable(text)}\n")


__all__ = ["guided"]
