"""Batches of training data: their order, their augmentation, and a thread that prepares them in advance."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from itertools import tee
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from halikit.data import Augmentation, DataSet, OwnAugmentation, Prefetched, order
from halikit.errors import InputError
from halikit.hardware.hardware import Hardware
from halikit.settings import ContextKind

__all__ = ["Batch", "Batches"]

# Batches that are prepared in advance: the next one, and one more meanwhile.
_PREFETCHED = 2


class Batch(NamedTuple):
    """A batch of one process.

    Attributes:
        x: ``(n, *shape of x)``.
        labels: ``(n,)`` int64; ``None`` where the data have none.
        context: What the model reads beside the data, ``(n, …)``; ``None`` for a model that reads nothing.
    """

    x: Tensor
    labels: Tensor | None = None
    context: Tensor | None = None


class Batches:
    """Full batches in an order that depends on (seed, epoch) alone; each process takes its part of every batch.

    A stream keeps its own order. A user's own code, in a data set or an augmentation, draws from global generators and
    is therefore not called in the thread that prepares batches in advance.

    Args:
        data: The data set, on the device where it is used.
        augmentation: Augmentation of the images; it depends on (seed, epoch, index).
        hardware: Where the training runs.
        size: Images in a batch, over all processes.
        seed: Seed of order and augmentation.
        prefetch: Batches to prepare in advance; ``"auto"`` where reading takes time.
        context: What the model reads of each datum beside it, if anything.

    Raises:
        InputError: If the batches cannot be divided among processes and micro-batches, or the data are too few.
    """

    def __init__(
        self,
        data: DataSet,
        augmentation: Augmentation | OwnAugmentation,
        hardware: Hardware,
        *,
        size: int,
        seed: int,
        prefetch: int | Literal["auto"] = "auto",
        context: ContextKind | None = None,
    ) -> None:
        self._train, self._augmentation, self._hardware = data.train, augmentation, hardware
        self._size, self._seed = size, seed
        self._context = None if context is None else data.train.context(context)
        self._depth = (_PREFETCHED if data.train.takes_time else 0) if prefetch == "auto" else prefetch
        if not isinstance(data.train.images, Tensor) or isinstance(augmentation, OwnAugmentation):
            self._depth = 0
        share, accumulate = hardware.processes.share(size), hardware.settings.accumulate
        if share % accumulate or share < 2 * accumulate:
            raise InputError(
                f"hardware.accumulate={accumulate} divides the {share} samples that a process takes of a batch: they "
                "must be a multiple of it, and at least twice as many"
            )
        data.check_batch(size)
        augmentation.check(data.shape)

    @contextmanager
    def starting_at(self, step: int) -> Iterator[Iterator[Batch]]:
        """The batches from a step on, without end, as a context that stops the thread and the processes behind them."""
        with closing(self._from(step)) as batches:
            if not self._depth:
                yield batches
                return
            with Prefetched(batches, self._depth, self._hardware.device) as prefetched:
                yield prefetched

    def _from(self, step: int) -> Generator[Batch, None, None]:
        read, shown = tee(self._plan(step))
        for (epoch, index), x in zip(shown, self._train.read(read, self._seed), strict=False):
            x = self._augmentation(x, index, seed=self._seed, epoch=epoch)
            yield Batch(x, _rows(self._train.labels, index), _rows(self._context, index))

    def _plan(self, step: int) -> Iterator[tuple[int, Tensor]]:
        """For each batch from a step on the epoch and the indices of this process's images."""
        rank, world = self._hardware.processes.rank, self._hardware.processes.world
        n, images = len(self._train), self._train.images
        is_stream = not isinstance(images, Tensor) and images.is_stream
        per_epoch = n // self._size
        epoch, first = divmod(step, per_epoch)
        while True:
            ordered = torch.arange(n) if is_stream else order(n, self._seed, epoch).to(self._train.home)
            for i in range(first, per_epoch):
                yield epoch, ordered[i * self._size + rank : (i + 1) * self._size : world]
            epoch, first = epoch + 1, 0


def _rows(values: Tensor | None, index: Tensor) -> Tensor | None:
    return None if values is None else values[index.to(values.device)]
