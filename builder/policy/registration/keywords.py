"""Wrappers of a hand-written policy's methods: batches as keywords, draws from a generator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch


def accepts_keywords(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `forward(self, batch, ...)` so that it also takes the entries of the batch as keywords.

    Its own options stay options. The wrapper has a parameter `return_loss`, which shows
    `transformers.Trainer` that evaluation has a loss without labels.
    """
    signature = inspect.signature(forward)
    parameters = list(signature.parameters.values())
    if len(parameters) < 2 or "return_loss" in signature.parameters:
        return forward
    batch, *options = parameters[1:]
    names = {option.name for option in options if option.kind is not option.VAR_KEYWORD}

    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("return_loss", None)
        if args or batch.name in kwargs:
            return forward(self, *args, **kwargs)
        given = {name: kwargs.pop(name) for name in names & kwargs.keys()}
        return forward(self, kwargs, **given)

    return_loss = inspect.Parameter("return_loss", inspect.Parameter.KEYWORD_ONLY, default=True)
    variadic = [p for p in parameters if p.kind is p.VAR_KEYWORD]
    wrapper.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*(p for p in parameters if p.kind is not p.VAR_KEYWORD), return_loss, *variadic]
    )
    return wrapper


def seeded(
    inference: Callable[..., Any], device: torch.device, generator: torch.Generator | None
) -> Callable[[Any], Any]:
    """Wrap `inference(batch)` so that all its draws from torch follow from a generator.

    torch's own generators keep their state. Without a generator, return `inference` itself.
    """
    if generator is None:
        return inference
    options = {"generator": generator} if "generator" in inspect.signature(inference).parameters else {}

    def wrapper(batch: Any) -> Any:
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            return inference(batch, **options)

    return wrapper


__all__ = ["accepts_keywords", "seeded"]
