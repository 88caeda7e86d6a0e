"""SIGTERM and SIGINT: at the first signal the training saves and stops, at the second the process ends at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Signals"]


class Signals:
    """A context that stores the first SIGTERM or SIGINT, and restores the default actions for the next signal.

    Outside the main thread Python allows no signal handlers, so nothing is stored.

    Args:
        are_wanted: Whether to store signals; if not, the present handlers are not replaced.

    Attributes:
        caught: Number of the signal, or ``None``.
    """

    def __init__(self, *, are_wanted: bool = True) -> None:
        self.are_wanted = are_wanted
        self.caught: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        self.caught = None
        if self.are_wanted and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        # The default action of the system. A handler in Python could be delayed by a step or a write that hangs.
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
