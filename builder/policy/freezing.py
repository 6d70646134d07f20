"""Frozen parameters, and the modules that stay in evaluation mode because of them."""

from __future__ import annotations

import fnmatch

from torch import nn


def keep_frozen_in_eval(module: nn.Module) -> None:
    """Set every module whose weights are all frozen to evaluation mode, so that its statistics stay fixed."""
    _visit(module)


def _visit(module: nn.Module) -> tuple[bool, bool]:
    """Visit a module and its children; return whether it has weights, and whether any of them trains."""
    found = [(True, parameter.requires_grad) for parameter in module.parameters(recurse=False)]
    found += [_visit(child) for child in module.children()]
    has, trains = any(has for has, _ in found), any(trains for _, trains in found)
    if has and not trains:
        module.train(False)
    return has, trains


def freeze(policy: nn.Module, patterns: list[str]) -> dict[str, int]:
    """Stop the gradient of every parameter that matches a glob pattern.

    Return the number of values by pattern.
    """
    frozen = {}
    for pattern in patterns:
        matched = [p for name, p in policy.named_parameters() if fnmatch.fnmatchcase(name, pattern)]
        for parameter in matched:
            parameter.requires_grad_(False)
        frozen[pattern] = sum(parameter.numel() for parameter in matched)
    return frozen


__all__ = ["freeze", "keep_frozen_in_eval"]
