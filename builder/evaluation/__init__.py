"""Evaluation of policies in simulation, against a blind control, and on held-out demonstrations."""

from .blind_control import blind
from .closed_loop import ClosedLoopResult, evaluate_closed_loop
from .evaluate import evaluate
from .open_loop import OpenLoopResult, evaluate_open_loop
from .result import EvaluationResult

__all__ = [
    "ClosedLoopResult",
    "EvaluationResult",
    "OpenLoopResult",
    "blind",
    "evaluate",
    "evaluate_closed_loop",
    "evaluate_open_loop",
]
