"""What happened since the last record: losses that wait on the device, and the time they took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from halikit.training.processes import Processes

__all__ = ["Meter", "Reading"]


class Reading(NamedTuple):
    """What some steps came to.

    Attributes:
        means: Over the finite ones, in the order in which a step gives them.
        rate: Steps per second.
    """

    means: list[float]
    rate: float


class Meter:
    """Collects the outcomes of steps, and times them by a clock that cannot be set back.

    Args:
        width: Numbers that a step comes to.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._unread: list[Tensor] = []
        self._timed = 0
        self._seconds = 0.0
        self.start()

    def start(self) -> None:
        """Training goes on: time counts from now on."""
        self._started = time.perf_counter() - self._seconds
        self.lap()

    def lap(self) -> None:
        """The rate counts from now on."""
        self._last = time.perf_counter()

    def add(self, outcome: Sequence[Tensor]) -> None:
        """One more step: scalars on the device."""
        self._unread.append(torch.stack(list(outcome)))
        self._timed += 1

    def read(self, processes: Processes) -> Reading:
        """The steps since the last reading, over all processes; here the host waits for the device."""
        seen = self.unread()
        means = seen.where(seen.isfinite(), torch.nan).nanmean(0)
        processes.average([means])
        rate = self._timed / max(time.perf_counter() - self._last, 1e-9)
        self._unread, self._timed = [], 0
        return Reading(means.tolist(), rate)

    def seconds(self) -> float:
        """Training time so far."""
        self._seconds = time.perf_counter() - self._started
        return self._seconds

    def unread(self) -> Tensor:
        """The outcomes since the last reading, ``(steps, width)``."""
        return torch.stack(self._unread) if self._unread else torch.zeros(0, self._width)

    def restore(self, unread: Tensor, seconds: float) -> None:
        """Go on from such outcomes, which do not count for the rate, and from the time that training took."""
        self._unread, self._timed, self._seconds = list(unread), 0, seconds
        self.start()
