"""Doubts about states and actions: data that reads well and trains badly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ..lerobot.features import ACTION, STATE
from ..lerobot.table import EpisodeTable
from ..motion import idle_start
from .findings import Finding, Severity, listed

Array = npt.NDArray[np.float64]
_IDLE_SECONDS, _JUMP, _FAR, _CLIPPED, _LAG_SECONDS = 0.5, 0.5, 50.0, 0.2, 0.3
_POINTS = 16
_SAME = 1e-8
"""Mean squared difference, relative to the range of each dimension, of two recordings of one episode."""
_ALIKE = 0.7
"""Correlation of action and state above which the action is a position."""
_MOST_EPISODES = 4000
"""Number of episodes up to which each is compared with each other."""


class Motion:
    """States and actions of the episodes of a table, with the names of the action's dimensions."""

    def __init__(self, table: EpisodeTable, fps: float, names: Sequence[str]) -> None:
        self.table, self.fps, self.names = table, fps, tuple(names)
        self.actions = table.columns[ACTION].astype(np.float64)
        state = table.columns.get(STATE)
        self.states = None if state is None else state.astype(np.float64)
        self.low, self.high = np.quantile(self.actions, [0.01, 0.99], axis=0)
        self.range = np.maximum(np.ptp(self.actions, axis=0), 1e-9)

    def episodes(self) -> Iterator[tuple[int, slice]]:
        """Yield the index and the rows of each episode."""
        for index, first, length in zip(
            self.table.episodes, self.table.first_rows, self.table.lengths, strict=True
        ):
            yield index, slice(first, first + length)

    def name(self, dimension: int) -> str:
        """Return the name of a dimension of the action, for a message."""
        known = len(self.names) == self.actions.shape[1]
        return f"`{self.names[dimension]}`" if known else f"dimension {dimension}"


def behavior_doubts(motion: Motion) -> list[Finding]:
    """Return the doubts about states and actions."""
    checks = (_idle, _jumps, _constant, _clipped, _far, _lag, _duplicates, _lengths)
    return [finding for check in checks for finding in check(motion)]


def _doubt(kind: str, text: str, episodes: Sequence[int] = ()) -> Finding:
    return Finding(Severity.WARNING, kind, text, tuple(episodes))


def _idle(motion: Motion) -> Iterator[Finding]:
    idle = {index: idle_start(motion.actions[rows], motion.range) for index, rows in motion.episodes()}
    long = {index: steps for index, steps in idle.items() if steps > _IDLE_SECONDS * motion.fps}
    if long:
        middle = float(np.median([*long.values()])) / motion.fps
        yield _doubt(
            "idle start",
            f"{listed([*long])} begin with a robot that stands still, for {middle:.1f} s in the median; a policy learns "
            "to wait, so drop these frames with `data.trim: idle_start`",
            [*long],
        )


def _jumps(motion: Motion) -> Iterator[Finding]:
    steps = np.abs(np.diff(motion.actions, axis=0)) / motion.range
    ends = np.asarray(motion.table.first_rows[1:], dtype=np.int64) - 1
    steps[ends] = 0.0
    for dimension in range(steps.shape[1]):
        column = steps[:, dimension]
        if _is_switch(motion.actions[:, dimension]):
            continue
        typical = float(np.quantile(column, 0.99))
        sudden = np.flatnonzero((column > _JUMP) & (column > 5 * typical))
        if len(sudden):
            places = [motion.table.locate(int(row)) for row in sudden]
            (episode, frame), concerned = places[0], [*dict.fromkeys(place for place, _ in places)]
            yield _doubt(
                "jump",
                f"the action {motion.name(dimension)} jumps by {column[sudden[0]]:.0%} of its range after frame {frame} of "
                f"episode {episode}, and in {len(concerned)} episodes in all; look at these frames, and leave out "
                "episodes with lost or reordered rows",
                concerned,
            )


def _is_switch(values: Array) -> bool:
    """Return whether nearly all values lie at two levels, like those of a gripper."""
    low, high = values.min(), values.max()
    near = 0.05 * max(high - low, 1e-9)
    return float(np.mean((values < low + near) | (values > high - near))) > 0.9


def _constant(motion: Motion) -> Iterator[Finding]:
    still = np.flatnonzero(np.ptp(motion.actions, axis=0) == 0.0)
    if len(still):
        names = ", ".join(motion.name(int(dimension)) for dimension in still)
        yield _doubt(
            "constant action",
            f"the action {names} never changes; check that it was recorded, or leave it out with `data.columns`",
        )


def _clipped(motion: Motion) -> Iterator[Finding]:
    for dimension in range(motion.actions.shape[1]):
        values = motion.actions[:, dimension]
        if _is_switch(values):
            continue
        for bound, word in ((values.min(), "lower"), (values.max(), "upper")):
            share = float(np.mean(values == bound))
            if share > _CLIPPED:
                yield _doubt(
                    "saturated action",
                    f"the action {motion.name(dimension)} is at its {word} limit, {bound:.4g}, in {share:.0%} of the frames; "
                    "it was clipped or saturated, so check its range in the recorder",
                )


def _far(motion: Motion) -> Iterator[Finding]:
    for key, values in motion.table.columns.items():
        wide = values.reshape(len(values), -1).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            low, middle, high = np.nanquantile(wide, [0.01, 0.5, 0.99], axis=0)
            reach = np.maximum(np.maximum(high - middle, middle - low), 1e-6)
            far = np.abs(wide - middle) > _FAR * reach
        far &= (high > low) | (np.abs(wide) > 1e3)
        if far.any():
            row, dimension = (int(place) for place in np.argwhere(far)[0])
            concerned = [*dict.fromkeys(motion.table.locate(int(r))[0] for r in np.flatnonzero(far.any(1)))]
            episode, frame = motion.table.locate(row)
            yield _doubt(
                "huge value",
                f"`{key}` has the value {wide[row, dimension]:.6g} in dimension {dimension} of frame {frame} of episode "
                f"{episode}, over {_FAR:g} times as far from the median as 98 % of the frames, and such values in "
                f"{len(concerned)} episodes; repair them or leave out these episodes",
                concerned,
            )


def _lag(motion: Motion) -> Iterator[Finding]:
    """Compare steps of state and action over shifts of up to a second, if the action is a position to reach."""
    states = motion.states
    if states is None or states.shape != motion.actions.shape:
        return
    most = round(motion.fps)
    shifts = range(-most // 2, most + 1)
    totals = np.zeros(len(shifts))
    for _, rows in motion.episodes():
        action, state = np.diff(motion.actions[rows], axis=0), np.diff(states[rows], axis=0)
        if len(action) < 3 * most:
            continue
        for place, shift in enumerate(shifts):
            one = action[max(-shift, 0) : len(action) - max(shift, 0)]
            other = state[max(shift, 0) : len(state) - max(-shift, 0)]
            scale = np.sqrt((one**2).sum(0) * (other**2).sum(0))
            moving = scale > 1e-12
            totals[place] += (
                float(((one * other).sum(0)[moving] / scale[moving]).mean()) if moving.any() else 0.0
            )
    if not totals.any():
        return
    best = shifts[int(np.argmax(totals))]
    count = len(states)
    if not _follows(
        motion.actions[max(-best, 0) : count - max(best, 0)], states[max(best, 0) : count - max(-best, 0)]
    ):
        return
    if best > _LAG_SECONDS * motion.fps:
        yield _doubt(
            "lag",
            f"the state follows the action after {best} frames, {best / motion.fps:.2f} s; check the clocks of the recorder, "
            "since a policy is given states that are late",
        )
    elif best < 0:
        yield _doubt(
            "lag",
            f"the state moves {-best} frames, {-best / motion.fps:.2f} s, before the action; the actions were recorded late "
            "or are measured positions, so shift them in the recorder",
        )


def _follows(actions: Array, states: Array) -> bool:
    """Return whether most dimensions of the state (N, D) are nearly those of the action."""
    one, other = actions - actions.mean(0), states - states.mean(0)
    scale = np.sqrt((one**2).sum(0) * (other**2).sum(0))
    return bool(np.median((one * other).sum(0) / np.maximum(scale, 1e-12)) > _ALIKE)


def _duplicates(motion: Motion) -> Iterator[Finding]:
    episodes = list(motion.episodes())
    if not 1 < len(episodes) <= _MOST_EPISODES:
        return
    paths = motion.actions if motion.states is None else np.hstack([motion.actions, motion.states])
    spread = np.ptp(paths, axis=0)
    paths = (paths - paths.mean(0)) / np.where(spread > 0.0, spread, 1.0)
    few = np.stack(
        [
            paths[np.linspace(rows.start, rows.stop - 1, _POINTS).round().astype(int)].ravel()
            for _, rows in episodes
        ]
    )
    squares, lengths = (few**2).sum(1), np.asarray(motion.table.lengths)
    distance = (squares[:, None] + squares[None] - 2.0 * few @ few.T) / few.shape[1]
    near = (distance < _SAME) & (np.abs(lengths[:, None] - lengths[None]) <= 2)
    alike = []
    for one, other in np.argwhere(np.triu(near, 1)).tolist():
        steps = min(lengths[one], lengths[other])
        first, second = (paths[episodes[place][1]][:steps] for place in (one, other))
        if float(np.square(first - second).mean()) < _SAME:
            alike.append((episodes[one][0], episodes[other][0]))
    if alike:
        twice = sorted({other for _, other in alike})
        yield _doubt(
            "duplicate",
            f"episode {alike[0][1]} repeats episode {alike[0][0]}, and {len(twice)} repeat another in all; leave "
            "them out, since they count twice, and in training and validation",
            twice,
        )


def _lengths(motion: Motion) -> Iterator[Finding]:
    lengths = np.asarray(motion.table.lengths)
    if len(lengths) < 8:
        return
    low, high = np.quantile(lengths, [0.25, 0.75])
    spread = max(high - low, 0.1 * high)
    odd = [
        i
        for i, n in zip(motion.table.episodes, lengths, strict=True)
        if n > high + 3 * spread or n < low - 3 * spread
    ]
    if odd:
        yield _doubt(
            "outlier",
            f"{listed(odd)} differ much in length from the others, half of which have {low:.0f} to {high:.0f} frames; look at "
            "them, and leave out failures",
            odd,
        )
