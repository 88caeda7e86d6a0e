"""Collects the losses since the last record, on the device, and measures the time of the steps."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from halikit.hardware.processes import Processes

__all__ = ["Meter", "Reading"]


class Reading(NamedTuple):
    """A summary of several steps.

    Attributes:
        means: Mean of each loss over the steps in which it was computed and finite; NaN if there was no such step.
        rate: Steps per second.
    """

    means: dict[str, float]
    rate: float


class Meter:
    """Collects the losses of steps, and measures the time with a monotonic clock.

    Args:
        columns: Names of the losses.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self._unread: list[Tensor] = []
        self._timed = 0
        self._seconds = 0.0
        self.start()

    def start(self) -> None:
        """Start the clock of the training time, or continue it after a pause."""
        self._started = time.perf_counter() - self._seconds
        self.start_lap()

    def start_lap(self) -> None:
        """Start the clock of the rate."""
        self._last = time.perf_counter()

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Add the losses of a step, scalars on the device by name; losses that were not computed are left out."""
        missing = torch.full_like(next(iter(losses.values())), torch.nan)
        self._unread.append(torch.stack([losses.get(name, missing) for name in self.columns]))
        self._timed += 1

    def read(self, processes: Processes) -> Reading:
        """A summary of the steps since the last reading, over all processes; synchronises with the device."""
        values = self.unread()
        means = values.where(values.isfinite(), torch.nan).nanmean(0)
        processes.average([means])
        rate = self._timed / max(time.perf_counter() - self._last, 1e-9)
        self._unread, self._timed = [], 0
        named = dict(zip(self.columns, means.tolist(), strict=True))
        return Reading(named, rate)

    def seconds(self) -> float:
        """Training time so far, in seconds."""
        self._seconds = time.perf_counter() - self._started
        return self._seconds

    def unread(self) -> Tensor:
        """The losses since the last reading, ``(steps, columns)``; NaN where a step did not compute one."""
        return torch.stack(self._unread) if self._unread else torch.zeros(0, len(self.columns))

    def restore(self, unread: Tensor, columns: Sequence[str], seconds: float) -> None:
        """Restore losses and training time from a checkpoint. The restored steps do not count for the rate.

        Args:
            unread: Losses since the last reading, ``(steps, columns)``.
            columns: Names of the columns; those that this meter does not have are dropped.
            seconds: Training time so far, in seconds.
        """
        places = [columns.index(name) if name in columns else None for name in self.columns]
        missing = unread.new_full((len(unread),), torch.nan)
        restored = [missing if place is None else unread[:, place] for place in places]
        self._unread, self._timed, self._seconds = list(torch.stack(restored, 1)), 0, seconds
        self.start()
