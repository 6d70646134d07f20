"""Values and files changed at random, one place at a time, from a seed."""

from __future__ import annotations

import copy
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from types import FrameType
from typing import Any

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 3, 17, 100_000, 2**31, 2**63, -(2**64), 10**40, 0.0, -0.5, 1e-300, 1e300, 0.1, "", "x",
    "a.b", "\x00", "é" * 40, "[/b]", "../..", "nan", "mlp", "x" * 10_000, [], [[]], [1, 2, 3], ["x"], [None], {}, {"": 1},
    {"type": "mlp"}, {"x": {"y": []}}, [{}], float("nan"), float("inf"),
]  # fmt: skip


class Hung(BaseException):
    """Raised where something takes too long; no handler for ordinary errors catches it."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise Hung in a block that takes longer."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hung(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the paths of all values in a nested one, except its own."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(value: Any, random: Random) -> Any:
    """Return a copy with one value replaced, removed, doubled, nested, swapped with another, or under another key."""
    made = copy.deepcopy(value)
    # A place is drawn level by level, so that the many numbers of statistics do not hide the rest.
    holder, key = made, random.choice(list(made))
    while isinstance(holder[key], (dict, list)) and holder[key] and random.random() < 0.8:
        holder = holder[key]
        key = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    old, how = (
        holder[key],
        random.choice(("odd", "odd", "odd", "remove", "rename", "double", "deep", "number", "swap")),
    )
    if how == "remove":
        del holder[key]
    elif how == "rename" and isinstance(holder, dict):
        holder[random.choice(["x", "", f"{key}_", "type"])] = holder.pop(key)
    elif how == "double" and isinstance(old, (list, str)):
        holder[key] = old * random.choice((2, 50))
    elif how == "deep":
        for _ in range(random.choice((1, 60, 900))):
            old = [old]
        holder[key] = old
    elif how == "number" and type(old) in (int, float):
        holder[key] = random.choice((-old, old + 1, old * 1000, old * 10**9, float(old), str(old)))
    elif how == "swap":
        other = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[key], holder[other] = holder[other], old
    else:
        holder[key] = copy.deepcopy(random.choice(ODD))
    return made


def bytes_changed(content: bytes, random: Random) -> bytes:
    """Return a copy with some bits flipped, cut short, or with a piece overwritten, moved or filled."""
    made = bytearray(content)
    how, start = random.choice(("flip", "flip", "cut", "zero", "move", "noise")), random.randrange(len(made))
    end = min(len(made), start + random.choice((1, 8, 64, 1000)))
    if how == "flip":
        for _ in range(random.choice((1, 1, 8))):
            made[random.randrange(len(made))] ^= 1 << random.randrange(8)
    elif how == "cut":
        del made[start:]
    elif how == "zero":
        made[start:end] = bytes(end - start)
    elif how == "move":
        place = random.randrange(len(made))
        made[place : place + end - start] = made[start:end]
    else:
        made[start:end] = random.randbytes(end - start)
    return bytes(made)
