"""Weights under the names of another library."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from ...schemas.errors import WeightsError

_SHOWN = 5


def renamed(
    state: Mapping[str, Tensor], names: Mapping[str, str], what: str, unused: Collection[str] = ()
) -> dict[str, Tensor]:
    """The weights that `names` maps, under their new names. Raises WeightsError that names what is missing or unknown.

    `what` says in a phrase whose weights these are; the `unused` ones may be there and are left out.
    """
    missing = [key for key in names if key not in state]
    unexpected = [key for key in state if key not in names and key not in unused]
    problems = [
        f"{noun}: {_listing(keys)}"
        for noun, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if problems:
        raise WeightsError(f"these are not the weights of {what}; {'; '.join(problems)}")
    return {new: state[old] for old, new in names.items()}


def inverted(names: Mapping[str, str]) -> dict[str, str]:
    """New names to old ones; two weights never get one name."""
    found = {new: old for old, new in names.items()}
    if len(found) != len(names):
        raise ValueError("two weights get one name")
    return found


def _listing(keys: list[str]) -> str:
    more = len(keys) - _SHOWN
    return ", ".join(f"`{key}`" for key in keys[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
