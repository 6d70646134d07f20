"""How good a policy is: in simulation, against a control that sees no image, and on held-out demonstrations."""

from .closed_loop import ClosedLoopResult, evaluate_closed_loop
from .control import blind
from .open_loop import OpenLoopResult, evaluate_open_loop
from .result import EvaluationResult
from .run import evaluate

__all__ = [
    "ClosedLoopResult",
    "EvaluationResult",
    "OpenLoopResult",
    "blind",
    "evaluate",
    "evaluate_closed_loop",
    "evaluate_open_loop",
]
