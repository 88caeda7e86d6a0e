"""What a training will cost: a few of its steps and an evaluation, played and taken back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch

from halikit.hardware.memory import most_memory
from halikit.training.batches import Batch
from halikit.training.snapshot import Snapshot
from halikit.training.stepper import Stepper

__all__ = ["Plan", "is_worth_a_rehearsal", "rehearse"]

# Kinds of steps are looked for among so many: with a penalty, for example, and without.
_SEARCHED = 256
# Steps of each kind that are timed, after one that prepares memory and compiles.
_TIMED = 3
# A rehearsal is worth at most this share of the steps.
_WORTH = 1 / 20


@dataclass(frozen=True)
class Plan:
    """What the steps to come will cost; estimates from a rehearsal.

    Attributes:
        seconds_per_step: Mean time of a step over its kinds, data included.
        seconds: Time to the last step, evaluations included and compilation left out.
        preparation: Time of the first step of each kind beyond the others; most of it is compilation.
        evaluation: Time of an evaluation.
        memory: Peak memory in bytes: that of the process, or what torch allocates on a GPU.
    """

    seconds_per_step: float
    seconds: float
    preparation: float
    evaluation: float
    memory: int

    def steps_within(self, seconds: float, evaluate_every: int) -> int:
        """The steps that a time allows, with their evaluations, the last one included; below 1 if it allows none.

        Args:
            seconds: The time.
            evaluate_every: Steps between evaluations.
        """
        return int((seconds - self.evaluation) / (self.seconds_per_step + self.evaluation / evaluate_every))


def is_worth_a_rehearsal(stepper: Stepper) -> bool:
    """Whether the steps to come are many compared with those of a rehearsal."""
    kinds = _kinds(stepper)
    return (1 + _TIMED) * len(set(kinds)) <= _WORTH * (stepper.total - stepper.steps)


def rehearse(
    stepper: Stepper,
    snapshot: Snapshot,
    batches: Iterator[Batch],
    evaluate: Callable[[], object],
    evaluations: int,
    *,
    seconds: float = 0.0,
) -> Plan:
    """Play a few steps of each kind and an evaluation, and take them back.

    Args:
        stepper: The training so far.
        snapshot: Its state.
        batches: Batches of training data.
        evaluate: An evaluation that writes nothing.
        evaluations: Number of evaluations to come.
        seconds: Time for which steps of each kind are timed, if three steps take less.

    Returns:
        What the steps to come will cost.
    """
    first, left = stepper.steps, stepper.total - stepper.steps
    kinds = _kinds(stepper)
    device = stepper.hardware.device
    mean = preparation = 0.0

    def timed(kind: object) -> float:
        stepper.steps = first + kinds.index(kind)
        return _seconds(lambda: stepper.step(*next(batches)), device)

    with snapshot.undone() as saved:
        try:
            for kind in dict.fromkeys(kinds):
                start, *times = [timed(kind) for _ in range(1 + _TIMED)]
                # All processes have to play the same steps.
                more = stepper.hardware.processes.agreed(int(seconds / max(median(times), 1e-6)) - _TIMED)
                times += [timed(kind) for _ in range(more)]
                usual = median(times)
                mean += usual * kinds.count(kind) / len(kinds)
                preparation += max(0.0, start - usual)
        finally:
            stepper.steps = first
        evaluation = _seconds(evaluate, device)
        memory = most_memory(device) - (saved if device.type == "cpu" else 0)
    return Plan(mean, left * mean + evaluations * evaluation, preparation, evaluation, memory)


def _kinds(stepper: Stepper) -> list[object]:
    """The kinds of the next steps."""
    first, left = stepper.steps, stepper.total - stepper.steps
    return [stepper.method.kind(step) for step in range(first, first + min(left, _SEARCHED))]


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
