"""Calls of the methods of a hand-written policy: batches as keywords, draws that follow from a generator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch


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


def seeded(
    inference: Callable[..., Any], device: torch.device, generator: torch.Generator | None
) -> Callable[[Any], Any]:
    """Return `inference` of one batch, in which all that is drawn from torch follows from the generator, where there is
    one. torch's own generators are left as they were.
    """
    if generator is None:
        return inference
    asked = {"generator": generator} if "generator" in inspect.signature(inference).parameters else {}

    def drawn(batch: Any) -> Any:
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            return inference(batch, **asked)

    return drawn


__all__ = ["accepted", "seeded"]
