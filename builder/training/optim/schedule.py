"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from ....schemas.recipe import ScheduleSection


def learning_rate(step: int, steps: int, peak: float, schedule: ScheduleSection) -> float:
    """Return the learning rate of the update after `step` updates, before any `lr_scale`.

    It rises linearly over `warmup` steps, then stays (`constant`) or falls to `final * peak` at the last of
    `steps`.
    """
    if step < schedule.warmup:
        return peak * (step + 1) / schedule.warmup
    if schedule.type == "constant":
        return peak
    progress = min((step - schedule.warmup) / max(steps - 1 - schedule.warmup, 1), 1.0)
    falling = 1.0 - progress if schedule.type == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (schedule.final + (1.0 - schedule.final) * falling)
