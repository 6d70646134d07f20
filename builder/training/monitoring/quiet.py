"""Silence for messages of libraries that a user can do nothing about."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

_LOGGERS = {
    "torch.utils._sympy.interp": "failed while executing",  # inductor gives up a bound of a shape
}
"""Loggers, and how the messages begin that are dropped."""
_WARNINGS = (
    "There is a performance drop because we have not yet implemented the batching rule",  # vmap over attention
    "TensorFloat32 tensor cores for float32 matrix multiplication available",
    "Online softmax is disabled on the fly",
)


class _Drop(logging.Filter):
    """A filter that drops messages by their beginning."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self._beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self._beginning)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Drop these messages, and the progress bars of transformers, while the context is active."""
    filters = {logging.getLogger(name): _Drop(beginning) for name, beginning in _LOGGERS.items()}
    had_bars = transformers_logging.is_progress_bar_enabled()
    for logger, drop in filters.items():
        logger.addFilter(drop)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for message in _WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, drop in filters.items():
            logger.removeFilter(drop)
        if had_bars:
            transformers_logging.enable_progress_bar()
