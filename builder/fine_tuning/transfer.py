"""Transfer of weights from a trained policy to a new one, by name and shape, and a report of it."""

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
"""Options that do not change the meaning of weights."""


@dataclass(frozen=True)
class Transfer:
    """Tensors that a policy takes from a trained one, and tensors that it does not."""

    names: Mapping[str, str]
    """Names in the trained policy, by names in the new one."""
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Shapes before and now."""
    new: tuple[str, ...]
    """Names without a counterpart in the trained policy."""
    left: tuple[str, ...]
    """Names of the trained policy without a counterpart in the new one."""
    values: int
    """Number of values taken."""
    of: int
    """Number of values of the new policy."""

    @property
    def untrained(self) -> list[str]:
        """Names of all tensors that keep their initial values."""
        return [*self.new, *self.reshaped]

    @property
    def summary(self) -> str:
        """One line on how much is taken."""
        total = len(self.names) + len(self.untrained)
        return f"{len(self.names)} of {total} tensors taken, {self.values:,} of {self.of:,} values"

    @property
    def lines(self) -> list[str]:
        """Lines that list the tensors not taken."""
        lines = []
        if self.new:
            lines.append(f"  new, without a counterpart: {_first(grouped(self.new, self._own))}")
        if self.reshaped:
            shapes = [f"{name} {before} -> {now}" for name, (before, now) in sorted(self.reshaped.items())]
            lines.append(f"  new, with another shape: {_first(shapes)}")
        if self.left:
            lines.append(f"  not taken: {_first(grouped(self.left, self._theirs))}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the record for provenance."""
        return {
            "tensors": len(self.names),
            "values": self.values,
            "new": grouped(self.new, self._own),
            "reshaped": {
                name: [list(before), list(now)] for name, (before, now) in sorted(self.reshaped.items())
            },
            "left": grouped(self.left, self._theirs),
        }

    @property
    def _own(self) -> set[str]:
        return {*self.names, *self.untrained}

    @property
    def _theirs(self) -> set[str]:
        return {*self.left, *self.names.values()}


def match_weights(source: nn.Module, policy: BasePolicyModel, given: str) -> Transfer:
    """Return the weights of a source that a policy can take.

    Raises:
        WeightsError: No weight fits, or low-rank adapters would be lost. `given` names the source in the
            message.
    """
    theirs = {name: tuple(value.shape) for name, value in source.state_dict().items()}
    transfer = _match(theirs, policy)
    lost = [name for name in transfer.left if any(mark in name for mark in _ADAPTER)]
    if lost:
        raise WeightsError(
            f"`{given}` has low-rank adapters that the recipe does not have, such as `{lost[0]}`; merge them first, "
            "`policysmith export RUN --merge --output DIR`, or give the backbone `lora` again"
        )
    if not transfer.names.keys() & dict(policy.named_parameters()).keys():
        here = grouped(transfer.untrained, set(transfer.untrained), whole=False)
        there = grouped(theirs, set(theirs), whole=False)
        raise WeightsError(
            f"no weight of `{given}` fits this policy: it has {_first(there)}, and this policy {_first(here)}; "
            "give parts the names and sizes that they have there"
        )
    return transfer


@torch.no_grad()
def copy_weights(source: nn.Module, policy: BasePolicyModel, transfer: Transfer) -> None:
    """Copy the weights of a transfer, in the dtype of the policy's own."""
    own, theirs = policy.state_dict(), source.state_dict()
    for name, other in transfer.names.items():
        own[name].copy_(theirs[other])


def _match(theirs: Mapping[str, tuple[int, ...]], policy: BasePolicyModel) -> Transfer:
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
    return Transfer(
        names,
        reshaped,
        tuple(new),
        tuple(name for name in theirs if name not in met),
        sum(own[name].numel() for name in names),
        sum(own[name].numel() for name in (*names, *new, *reshaped)),
    )


def changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the options in both recipes whose change gives weights another meaning."""
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
        if one[key] != other[key] and not ({key, key.rpartition(".")[2], *_prefixes(key)} & _SETTINGS):
            found.append(f"`{key}` was {one[key]!r} and is {other[key]!r}")
    return sorted(found)


def grouped(names: Collection[str], universe: Collection[str], *, whole: bool = True) -> list[str]:
    """Return names as few patterns, such as `head.*` if they include everything below `head` in the universe.

    Unless `whole`, a pattern needs only one name.
    """
    inside = Counter(prefix for name in names for prefix in _prefixes(name))
    there = Counter(prefix for name in universe for prefix in _prefixes(name))
    found: dict[str, None] = {}
    for name in sorted(names):
        prefixes = [p for p in _prefixes(name) if inside[p] == there[p] and inside[p] > 1]
        if not whole:
            prefixes = [p for p in _prefixes(name) if p.count(".") == 1] or prefixes
        found[f"{prefixes[0]}.*" if prefixes else name] = None
    return list(found)


def _prefixes(name: str) -> list[str]:
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


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


__all__ = ["Transfer", "changed_options", "copy_weights", "grouped", "match_weights"]
