"""How many steps a time allows: measured before the training begins, and fixed from then on."""

from __future__ import annotations

import time
from collections.abc import Callable

from halikit.errors import InputError
from halikit.hardware.processes import Processes
from halikit.training.plan import Plan

__all__ = ["steps_within"]

# Steps of the first rehearsal: too few to be compiled where that is decided by their number.
_FIRST = 256
# Share of the time, and at most so many seconds, for which the steps of a kind are timed in a rehearsal.
_MEASURED, _LONGEST = 0.02, 10.0


def steps_within(
    seconds: float, evaluate_every: int, processes: Processes, rehearsed: Callable[[int, float], Plan]
) -> int:
    """The number of steps that a time allows, the time of this measurement included.

    Args:
        seconds: The time.
        evaluate_every: Steps between evaluations.
        processes: The processes that train together; they agree on the number.
        rehearsed: Rehearses a training of so many steps, whose kinds are timed for so many seconds.

    Raises:
        InputError: If the time does not allow one step and an evaluation.
    """
    end = time.monotonic() + seconds
    steps, measured = _FIRST, min(_MEASURED * seconds, _LONGEST)
    # The second rehearsal is that of the number which the first has found: if they are many, steps are compiled.
    for _ in range(2):
        plan = rehearsed(steps, measured)
        steps = processes.agreed(plan.steps_within(end - time.monotonic(), evaluate_every))
        if steps < 1:
            raise InputError(
                f"{seconds:.3g} s are too few for the measurement, a step of {plan.seconds_per_step:.3g} s and an "
                f"evaluation of {plan.evaluation:.3g} s; give more minutes"
            )
    return steps
