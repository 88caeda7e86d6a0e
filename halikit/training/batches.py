"""Batches of training data: their order, their augmentation, and a thread that prepares them in advance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

from torch import Tensor

from halikit.data import Augmentation, DataSet, Prefetched, order
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
        augmentation: Augmentation,
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
        share, accumulate = hardware.processes.share(size), hardware.settings.accumulate
        if share % accumulate or share < 2 * accumulate:
            raise InputError(
                f"hardware.accumulate={accumulate} divides the {share} samples that a process takes of a batch: they "
                "must be a multiple of it, and at least twice as many"
            )
        data.check_batch(size)
        augmentation.check(data.shape)

    def starting_at(self, step: int) -> AbstractContextManager[Iterator[Batch]]:
        """The batches from a step on, without end, as a context that stops the thread behind them."""
        batches = self._from(step)
        return Prefetched(batches, self._depth, self._hardware.device) if self._depth else nullcontext(batches)

    def _from(self, step: int) -> Iterator[Batch]:
        rank, world = self._hardware.processes.rank, self._hardware.processes.world
        per_epoch = len(self._train) // self._size
        epoch, first = divmod(step, per_epoch)
        while True:
            shuffled = order(len(self._train), self._seed, epoch).to(self._train.images.device)
            for i in range(first, per_epoch):
                index = shuffled[i * self._size + rank : (i + 1) * self._size : world]
                x = self._augmentation(self._train.batch(index), index, seed=self._seed, epoch=epoch)
                yield Batch(x, _rows(self._train.labels, index), _rows(self._context, index))
            epoch, first = epoch + 1, 0


def _rows(values: Tensor | None, index: Tensor) -> Tensor | None:
    return None if values is None else values[index.to(values.device)]
