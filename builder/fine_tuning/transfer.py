"""Weights of a saved policy as another one takes them, by name and shape, and a report of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...schemas.errors import WeightsError
from ..policy import BasePolicyModel

_ADAPTER = (".lora_A.", ".lora_B.", ".lora_embedding_A.", ".lora_embedding_B.")
_SETTINGS = {
    "policy.init", "policy.execute", "policy.ensemble", "policy.freeze", "type", "pretrained", "tokenizer", "lora",
    "gradient_checkpointing", "dropout",
}  # fmt: skip
"""Options that say nothing of what weights mean."""


@dataclass(frozen=True)
class Taken:
    """The weights that a policy takes of another: names in both, tensors of another shape, tensors of only one of them."""

    names: Mapping[str, str]
    """Names in the saved policy, by names in this one."""
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Shape that was and shape that is."""
    new: tuple[str, ...]
    left: tuple[str, ...]
    values: int
    """Numbers taken."""
    of: int
    """Numbers of this policy."""

    @property
    def anew(self) -> list[str]:
        """Names of all that begins anew."""
        return [*self.new, *self.reshaped]

    @property
    def summary(self) -> str:
        total = len(self.names) + len(self.anew)
        return f"{len(self.names)} of {total} tensors taken, {self.values:,} of {self.of:,} values"

    @property
    def lines(self) -> list[str]:
        """Return lines that list the weights left behind."""
        lines = []
        if self.new:
            lines.append(f"  new, with no counterpart there: {_some(grouped(self.new, self._own))}")
        if self.reshaped:
            shapes = [f"{name} {was} -> {now}" for name, (was, now) in sorted(self.reshaped.items())]
            lines.append(f"  new, because of another shape: {_some(shapes)}")
        if self.left:
            theirs = {*self.left, *self.names.values()}
            lines.append(f"  left there: {_some(grouped(self.left, theirs))}")
        return lines

    def to_json(self) -> dict[str, Any]:
        theirs = {*self.left, *self.names.values()}
        return {
            "tensors": len(self.names),
            "values": self.values,
            "new": grouped(self.new, self._own),
            "reshaped": {name: [list(was), list(now)] for name, (was, now) in sorted(self.reshaped.items())},
            "left": grouped(self.left, theirs),
        }

    @property
    def _own(self) -> set[str]:
        return {*self.names, *self.anew}


def match(source: nn.Module, policy: BasePolicyModel, given: str) -> Taken:
    """Return the weights of a source that a policy can take. Raise WeightsError where none fits, and where adapters would be lost."""
    theirs = {name: tuple(value.shape) for name, value in source.state_dict().items()}
    taken = _match(theirs, policy)
    lost = [name for name in taken.left if any(mark in name for mark in _ADAPTER)]
    if lost:
        raise WeightsError(
            f"`{given}` has low-rank adapters that the recipe has no place for, such as `{lost[0]}`; merge them first, "
            "`policysmith export RUN --merge --output DIR`, or give the backbone `lora` again"
        )
    if not taken.names.keys() & dict(policy.named_parameters()).keys():
        ours = grouped(taken.anew, set(taken.anew), whole=False)
        raise WeightsError(
            f"no weight of `{given}` fits this policy: there are {_some(grouped(theirs, set(theirs), whole=False))} "
            f"there and {_some(ours)} here; give parts the names and sizes that they have there"
        )
    return taken


@torch.no_grad()
def copy(source: nn.Module, policy: BasePolicyModel, taken: Taken) -> None:
    """Give a policy what it takes, in the dtype of its own weights."""
    own, theirs = policy.state_dict(), source.state_dict()
    for name, other in taken.names.items():
        own[name].copy_(theirs[other])


def _match(theirs: Mapping[str, tuple[int, ...]], policy: BasePolicyModel) -> Taken:
    own = policy.state_dict()
    tied = policy.get_expanded_tied_weights_keys(all_submodels=True)
    names: dict[str, str] = {}
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    new: list[str] = []
    for name, value in own.items():
        found = next((n for n in (name, name.replace(".base_layer.", ".")) if n in theirs), None)
        if found is None and name in tied:
            continue
        if found is None:
            new.append(name)
        elif theirs[found] == tuple(value.shape):
            names[name] = found
        else:
            reshaped[name] = theirs[found], tuple(value.shape)
    met = {*names.values(), *(name.replace(".base_layer.", ".") for name in reshaped), *reshaped}
    return Taken(
        names,
        reshaped,
        tuple(new),
        tuple(name for name in theirs if name not in met),
        sum(own[name].numel() for name in names),
        sum(own[name].numel() for name in (*names, *new, *reshaped)),
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Options of transforms and parts, in both recipes, that make weights of one shape mean something else."""
    found = []
    types = [[raw["type"] for raw in recipe["transforms"]] for recipe in (before, now)]
    if types[0] != types[1]:
        found.append(
            f"`transforms` were {', '.join(types[0]) or 'none'} and are {', '.join(types[1]) or 'none'}"
        )
    one, other = (
        dict(_flat({"policy": recipe["policy"]}))
        | (dict(_flat({"transforms": recipe["transforms"]})) if types[0] == types[1] else {})
        for recipe in (before, now)
    )
    for key in one.keys() & other.keys():
        if one[key] != other[key] and not ({key, key.rpartition(".")[2], *_starts(key)} & _SETTINGS):
            found.append(f"`{key}` was {one[key]!r} and is {other[key]!r}")
    return sorted(found)


def grouped(names: Collection[str], universe: Collection[str], *, whole: bool = True) -> list[str]:
    """Names as few patterns: `head.*` where all of the universe below `head` is among them (or any, unless `whole`)."""
    inside = Counter(start for name in names for start in _starts(name))
    there = Counter(start for name in universe for start in _starts(name))
    found: dict[str, None] = {}
    for name in sorted(names):
        starts = [s for s in _starts(name) if inside[s] == there[s] and inside[s] > 1]
        if not whole:
            starts = [s for s in _starts(name) if s.count(".") == 1] or starts
        found[f"{starts[0]}.*" if starts else name] = None
    return list(found)


def _starts(name: str) -> list[str]:
    steps = name.split(".")
    return [".".join(steps[:length]) for length in range(1, len(steps))]


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _flat(item, f"{place}.{index}")
    else:
        yield place, value


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


__all__ = ["Taken", "copy", "differences", "grouped", "match"]
