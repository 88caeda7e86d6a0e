"""The order of the images in an epoch, and batches that a thread prepares while the training step is computed."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["Prefetched", "order"]

T = TypeVar("T")

_POLL_SECONDS = 0.2  # between checks whether the other thread still runs


def order(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation of ``n`` images that depends only on the arguments.

    It sorts random keys of a counter-based generator (Philox), whose numbers are the same in every version of numpy. No
    global generator is used, so a resumed run has the same order as an uninterrupted one.

    Args:
        n: Number of images.
        seed: Seed of the run, any integer.
        epoch: Number of the epoch, from 0.

    Returns:
        ``(n,)`` int64 on the CPU: each of 0 … n − 1 once.

    Example:
        >>> order(5, seed=0, epoch=0).sort().values.tolist()
        [0, 1, 2, 3, 4]
        >>> torch.equal(order(1000, seed=0, epoch=1), order(1000, seed=1, epoch=0))
        False
    """
    keys = np.random.Philox(np.random.SeedSequence((seed % 2**64, epoch % 2**64))).random_raw(n)
    return torch.from_numpy(np.argsort(keys, kind="stable").astype(np.int64))


class _Ready(NamedTuple):
    """A batch, or the error that was raised instead; on a GPU, the event after which the batch may be read."""

    batch: Any = None
    copied: torch.cuda.Event | None = None
    error: BaseException | None = None


class Prefetched(Iterator[T]):
    """The batches of an iterator in the same order, prepared by one thread.

    For a GPU, the thread uses its own CUDA stream, so that it works in parallel with the training step. An error in the
    thread is raised again by :meth:`__next__`. Use the object as a context manager, so that the thread ends.

    Args:
        batches: The iterator, of tensors or tuples of tensors. It runs in the thread, so it must not use torch's global
            generators.
        depth: Number of batches to keep ready, at least 1.
        device: Device of the batches.
    """

    def __init__(self, batches: Iterator[T], depth: int, device: torch.device) -> None:
        self._batches = batches
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ready: Queue[_Ready] = Queue(depth)
        self._is_closed = Event()
        self._thread = Thread(target=self._work, name="halikit batches", daemon=True)
        self._thread.start()

    def __enter__(self) -> Prefetched[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread and drop the batches that were ready."""
        self._is_closed.set()
        self._thread.join()

    def __next__(self) -> T:
        """The next batch. The host waits for the thread; a GPU waits for the copy.

        Raises:
            StopIteration: If there is no further batch.
            RuntimeError: If the thread has ended without an error.
            Exception: The error that was raised in the thread.
        """
        while True:
            try:
                batch, copied, error = self._ready.get(timeout=_POLL_SECONDS)
                break
            except Empty:
                if not self._thread.is_alive() and self._ready.empty():
                    raise RuntimeError("the thread that prepares batches is gone") from None
        if error is not None:
            # The next call raises it again, because no batch follows.
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
            while not self._is_closed.is_set():
                self._put(self._prepare())
        except BaseException as error:
            self._put(_Ready(error=error))

    def _prepare(self) -> _Ready:
        if self._stream is None:
            return _Ready(next(self._batches))
        with torch.cuda.stream(self._stream):
            return _Ready(next(self._batches), self._stream.record_event())

    def _put(self, ready: _Ready) -> None:
        while not self._is_closed.is_set():
            try:
                self._ready.put(ready, timeout=_POLL_SECONDS)
            except Full:
                continue
            return
