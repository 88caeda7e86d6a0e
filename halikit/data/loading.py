"""Batches that are made ready by a thread of their own while a step is played."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty, Full, Queue
from threading import Event, Thread
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = ["Prefetched"]

T = TypeVar("T")

# Seconds between looks at whether the other side is still there.
_PATIENCE = 0.2


class _Ready(NamedTuple):
    """A batch, or what went wrong instead; on a GPU, the moment from which it may be read."""

    batch: Any = None
    copied: torch.cuda.Event | None = None
    error: BaseException | None = None


class Prefetched(Iterator[T]):
    """The same batches in the same order, up to ``depth`` of them ahead.

    One thread makes them, so that their order is that of the iterator. For a GPU it does so on a stream of its own,
    beside the step that is computed there. What is raised in it is raised again where the batch would have been had.
    Use it as a context, so that the thread ends.

    Args:
        batches: Tensors, or tuples of tensors, made by the thread alone: it must not draw from torch's global generators.
        depth: How many to keep ready, at least 1.
        device: Where they are.
    """

    def __init__(self, batches: Iterator[T], depth: int, device: torch.device) -> None:
        self._batches = batches
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ready: Queue[_Ready] = Queue(depth)
        self._is_over = Event()
        self._thread = Thread(target=self._work, name="halikit batches", daemon=True)
        self._thread.start()

    def __enter__(self) -> Prefetched[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the thread; batches that were ready are lost."""
        self._is_over.set()
        self._thread.join()

    def __next__(self) -> T:
        """The next batch; the host waits for the thread, a GPU for the copy.

        Raises:
            StopIteration: If there is none.
            RuntimeError: If the thread is gone without a word.
            Exception: Whatever was raised in the thread.
        """
        while True:
            try:
                batch, copied, error = self._ready.get(timeout=_PATIENCE)
                break
            except Empty:
                if not self._thread.is_alive() and self._ready.empty():
                    raise RuntimeError("the thread that makes batches ready is gone") from None
        if error is not None:
            # Raised again if asked again, since nothing comes after it.
            self._ready.put(_Ready(error=error))
            raise error
        if copied is not None:
            for tensor in batch if isinstance(batch, tuple) else (batch,):
                if isinstance(tensor, Tensor) and tensor.is_cuda:
                    stream = torch.cuda.current_stream(tensor.device)
                    stream.wait_event(copied)
                    tensor.record_stream(stream)
        return batch

    def _work(self) -> None:
        try:
            while not self._is_over.is_set():
                self._put(self._made())
        except BaseException as error:
            # With its traceback, to where it is asked for.
            self._put(_Ready(error=error))

    def _made(self) -> _Ready:
        if self._stream is None:
            return _Ready(next(self._batches))
        with torch.cuda.stream(self._stream):
            return _Ready(next(self._batches), self._stream.record_event())

    def _put(self, ready: _Ready) -> None:
        while not self._is_over.is_set():
            try:
                self._ready.put(ready, timeout=_PATIENCE)
            except Full:
                continue
            return
