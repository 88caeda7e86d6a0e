"""SIGTERM and SIGINT: the first is a request to save and stop, the second is obeyed at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Signals"]


class Signals:
    """As a context, notes the first of these signals and gives its default meaning back to the next.

    Outside the main thread, where Python has no handlers, it notes nothing.

    Args:
        are_wanted: Whether to note any; if not, they keep the meaning that they have.

    Attributes:
        caught: The number of the signal that came, or ``None``.
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
        # The system's own action, not a handler in Python: a step or a write that hangs cannot delay it.
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
