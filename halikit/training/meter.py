"""Losses since the last record, which wait on the device, and the time that the steps took."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from halikit.hardware.processes import Processes

__all__ = ["Meter", "Reading"]


class Reading(NamedTuple):
    """Some steps in summary.

    Attributes:
        means: Mean of each loss over the steps in which it was taken and finite; those that were never are missing.
        rate: Steps per second.
    """

    means: dict[str, float]
    rate: float


class Meter:
    """Collects the losses of steps, and times the steps by a clock that cannot be set back.

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
        """Training goes on: time counts from now on."""
        self._started = time.perf_counter() - self._seconds
        self.start_lap()

    def start_lap(self) -> None:
        """The rate counts from now on."""
        self._last = time.perf_counter()

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Add a step: its losses, scalars on the device; those that it did not take are missing."""
        missing = torch.full_like(next(iter(losses.values())), torch.nan)
        self._unread.append(torch.stack([losses.get(name, missing) for name in self.columns]))
        self._timed += 1

    def read(self, processes: Processes) -> Reading:
        """The steps since the last reading, over all processes; here the host waits for the device."""
        values = self.unread()
        means = values.where(values.isfinite(), torch.nan).nanmean(0)
        processes.average([means])
        rate = self._timed / max(time.perf_counter() - self._last, 1e-9)
        self._unread, self._timed = [], 0
        named = dict(zip(self.columns, means.tolist(), strict=True))
        return Reading(named, rate)

    def seconds(self) -> float:
        """Training time so far."""
        self._seconds = time.perf_counter() - self._started
        return self._seconds

    def unread(self) -> Tensor:
        """The losses since the last reading, ``(steps, columns)``; NaN where a step did not take one."""
        return torch.stack(self._unread) if self._unread else torch.zeros(0, len(self.columns))

    def restore(self, unread: Tensor, columns: Sequence[str], seconds: float) -> None:
        """Go on from earlier losses, which do not count for the rate, and from an earlier training time.

        Args:
            unread: ``(steps, columns)``.
            columns: Names of its columns; those that this meter does not have are dropped.
            seconds: Training time so far.
        """
        places = [columns.index(name) if name in columns else None for name in self.columns]
        missing = unread.new_full((len(unread),), torch.nan)
        kept = [missing if place is None else unread[:, place] for place in places]
        self._unread, self._timed, self._seconds = list(torch.stack(kept, 1)), 0, seconds
        self.start()
