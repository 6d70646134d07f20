"""Batches as keyword arguments, which is how `transformers.Trainer` calls a model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def accepted(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A `forward(self, batch, ...)` that also takes the entries of the batch as keywords; its own options stay options.

    Its signature has `return_loss`, by which `Trainer` learns that evaluation gives a loss without labels.
    """
    signature = inspect.signature(forward)
    parameters = list(signature.parameters.values())
    if len(parameters) < 2 or "return_loss" in signature.parameters:
        return forward
    batch, *options = parameters[1:]
    names = {option.name for option in options if option.kind is not option.VAR_KEYWORD}

    @functools.wraps(forward)
    def taking_keywords(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("return_loss", None)
        if args or batch.name in kwargs:
            return forward(self, *args, **kwargs)
        given = {name: kwargs.pop(name) for name in names & kwargs.keys()}
        return forward(self, kwargs, **given)

    told = inspect.Parameter("return_loss", inspect.Parameter.KEYWORD_ONLY, default=True)
    rest = [p for p in parameters if p.kind is p.VAR_KEYWORD]
    taking_keywords.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*(p for p in parameters if p.kind is not p.VAR_KEYWORD), told, *rest]
    )
    return taking_keywords


__all__ = ["accepted"]
