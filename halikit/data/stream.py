"""Streams: ``torch.utils.data.IterableDataset``.

An epoch is the first N items of the stream, from its beginning. N is its length, or ``data.epoch_images``. The first
tenth of them, at most 1,000, is held out: it is read once and kept in memory. The others are trained on in their own
order; no more of them than a batch is in memory.

Before each epoch ``set_epoch`` of the stream is called, if it has one. Before each item the global generators of
Python, NumPy and torch are seeded by (seed, epoch, position). A resumed run reads the epoch again up to where it was,
so it goes on with the same items if the stream gives the same items again. Each process of a training reads the whole
stream and uses its own share of each batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from halikit.data.augmentation import philox
from halikit.data.dataset import DataError, DataSet, Split
from halikit.data.item import Item, read_item, stacked
from halikit.data.own import PROBED, check_probe
from halikit.utils.random import restored, seed_all

__all__ = ["Stream", "from_stream"]

_MOST_HELD_OUT = 1000


@dataclass(frozen=True, eq=False)
class Stream:
    """A :class:`~halikit.data.Store` of the images of a stream that are trained on.

    Args:
        source: The stream.
        name: Its name, for messages.
        like: An image of the shape and the dtype that all have.
        first: Position of the first image; those before are held out.
        end: Position after the last one.
        channels: Channels of images, if not 1 or 3.
    """

    source: IterableDataset[Any]
    name: str
    like: Tensor
    first: int
    end: int
    channels: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, *shape)``."""
        return (len(self), *self.like.shape)

    @property
    def dtype(self) -> torch.dtype:
        """uint8 or float32."""
        return self.like.dtype

    @property
    def is_stream(self) -> bool:
        """Whether the images can be read in their own order alone: always."""
        return True

    def __len__(self) -> int:
        """Number of images in an epoch."""
        return self.end - self.first

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Refused, because a stream has no rows.

        Raises:
            DataError: In any case.
        """
        raise DataError(f"{self.name} is a stream: its images can be trained on in their order, but not chosen")

    def part(self, rows: slice | Tensor) -> Stream:
        """Refused, as above.

        Raises:
            DataError: In any case.
        """
        raise DataError(f"{self.name} is a stream: its images can be trained on in their order, but not chosen")

    def read(self, plan: Iterable[tuple[int, Tensor]], seed: int) -> Iterator[Tensor]:
        """Read batches; see :meth:`halikit.data.Store.read`.

        Raises:
            DataError: If an item cannot be used, or the stream ends before its epoch does.
        """
        current, walk = None, _Walk(self, seed, 0)
        for epoch, index in plan:
            if epoch != current:
                current, walk = epoch, _Walk(self, seed, epoch)
            positions = (index + self.first).tolist()
            items = walk.items(positions)
            yield stacked(items, self.like, positions, self.name, self.channels)


class _Walk:
    """One way through the stream, from its beginning.

    Args:
        stream: The stream.
        seed: Seed of what is random in it.
        epoch: Number of the epoch.
    """

    def __init__(self, stream: Stream, seed: int, epoch: int) -> None:
        self._stream, self._position = stream, 0
        self._words = philox(torch.arange(stream.end), seed, epoch)[:, 0]
        with restored():
            seed_all(int(self._words[0]))
            if hasattr(stream.source, "set_epoch"):
                stream.source.set_epoch(epoch)
            self._items = iter(stream.source)

    def items(self, positions: Sequence[int]) -> list[Item]:
        """The items at ascending positions, each after those of the last call."""
        name, items = self._stream.name, []
        with restored():
            for position in positions:
                while self._position <= position:
                    item = self._next()
                items.append(read_item(item, f"{name}: item {position}", self._stream.channels))
        return items

    def _next(self) -> Any:
        stream, position = self._stream, self._position
        seed_all(int(self._words[position]))
        try:
            item = next(self._items)
        except StopIteration:
            raise DataError(
                f"{stream.name} ends after {position} of {stream.end} items; say how many an epoch has: "
                f"data.epoch_images={position}"
            ) from None
        self._position += 1
        return item


def from_stream(
    source: IterableDataset[Any],
    *,
    epoch_images: int | None = None,
    channels: int | None = None,
    notes: Sequence[str] = (),
) -> DataSet:
    """A data set whose images come from a stream; see the top of this module. Its labels are not read.

    Args:
        source: The stream; its items are those of :mod:`halikit.data.item`.
        epoch_images: Items of an epoch, held-out ones included; by default the length of the stream.
        channels: Channels of images, 1 to 16, in place of 1 or 3.
        notes: What to say about it.

    Raises:
        DataError: If the number of items is not known, or they cannot be used.
    """
    name, n = type(source).__name__, epoch_images
    if n is None:
        try:
            n = len(source)  # type: ignore[arg-type]
        except TypeError:
            raise DataError(
                f"{name} is a stream without a length: say how many images an epoch has, data.epoch_images=N"
            ) from None
    if n < 2:
        raise DataError(f"{name}: {n} items; at least two are needed, one of them held out")
    first = min(max(1, n // 10), _MOST_HELD_OUT)
    stream = Stream(source, name, torch.empty(0), first, n, channels)
    items = _Walk(stream, 0, 0).items(range(max(first, min(n, PROBED))))
    images = stacked(items, items[0].image, range(len(items)), name, channels)
    check_probe(images, name, channels)
    stream = replace(stream, like=items[0].image)
    said = [
        *notes,
        f"a stream, read without workers: an epoch is its first {n} items, from the beginning and in their order; "
        f"the first {first} are held out; a resumed run reads the epoch again up to where it was, and goes on with the "
        "same items if the stream repeats itself",
    ]
    if items[0].label is not None or items[0].attributes is not None:
        said.append("the labels of a stream are not read; a map-style Dataset has labels")
    return DataSet(name, tuple(stream.like.shape), (), Split(stream), None, Split(images[:first]), notes=tuple(said))
