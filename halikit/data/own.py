"""A user's own map-style data sets: ``torch.utils.data.Dataset``, alone or in a ``DataLoader``.

The images stay where they are: an item is read each time it is needed, by as many worker processes as asked for. Before
item i is read, the global generators of Python, NumPy and torch are seeded by (seed, epoch, i). So an item may be
random, and is the same with any number of workers and in a resumed run. The last tenth is held out.

Labels come from ``targets`` or ``labels`` of the data set, as torchvision has them, if they agree with some items that
are read. Otherwise every item is read once, before the training begins.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import data as torch_data

from halikit.data.array import MAX_CLASSES, check_range
from halikit.data.augmentation import philox
from halikit.data.dataset import DataError, DataSet, Split, check_labels, divided, with_occurring_classes
from halikit.data.item import Item, are_images, lowest_and_highest, read_item, stacked
from halikit.utils.random import restored, seed_all
from halikit.utils.tensors import evenly_spaced

__all__ = ["PROBED", "Items", "check_probe", "from_dataset", "left_out"]

# Items that are read at once to find out what a data set holds.
PROBED = 64
# Items that are read at once to learn their labels.
_PASSED = 64


@dataclass(frozen=True, eq=False)
class Items:
    """A :class:`~halikit.data.Store` of the images of a data set.

    Args:
        source: The data set.
        name: Its name, for messages.
        like: An image of the shape and the dtype that all have.
        rows: Indices of the images in the data set, ``(n,)`` int64.
        workers: Processes that read batches in advance; 0 to read each batch when it is needed, in this process.
        context: How processes are started, as ``multiprocessing_context`` of a ``DataLoader``.
        channels: Channels of images, if not 1 or 3.
    """

    source: torch_data.Dataset[Any]
    name: str
    like: Tensor
    rows: Tensor
    workers: int = 0
    context: Any = None
    channels: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, *shape)``."""
        return (len(self.rows), *self.like.shape)

    @property
    def dtype(self) -> torch.dtype:
        """uint8 or float32."""
        return self.like.dtype

    @property
    def is_stream(self) -> bool:
        """Whether the images can be read in their own order alone: never."""
        return False

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Read some images in this process, under the seed 0."""
        chosen = self.rows[rows]
        return stacked(self.items(chosen), self.like, chosen.tolist(), self.name, self.channels)

    def part(self, rows: slice | Tensor) -> Items:
        """Some of the images, without reading them."""
        return replace(self, rows=self.rows[rows])

    def read(self, plan: Iterable[tuple[int, Tensor]], seed: int) -> Iterator[Tensor]:
        """Read batches; see :meth:`halikit.data.Store.read`.

        Raises:
            DataError: If an item cannot be used; it names the item.
        """
        for found in self._in_order(partial(_images, self, seed), plan):
            if isinstance(found, DataError):
                raise found
            yield found

    def items(self, rows: Tensor, seed: int = 0, epoch: int = 0) -> list[Item]:
        """Read items by their indices in the data set."""
        items = []
        with restored():
            for row, word in zip(rows.tolist(), philox(rows, seed, epoch)[:, 0].tolist(), strict=True):
                seed_all(word)
                try:
                    item = self.source[row]
                except Exception as error:
                    error.add_note(f"{self.name}: item {row} cannot be read")
                    raise
                items.append(read_item(item, f"{self.name}: item {row}", self.channels))
        return items

    def seconds(self) -> list[Item]:
        """All items, with their labels and attributes and without their images; each is read and checked."""
        plan = ((0, index) for index in torch.arange(len(self)).split(_PASSED))
        found: list[Item] = []
        for some in self._in_order(partial(_seconds, self), plan):
            if isinstance(some, DataError):
                raise some
            found += some
        return found

    def _in_order(self, job: Any, plan: Iterable[tuple[int, Tensor]]) -> Iterator[Any]:
        """What a job returns for each batch of a plan, in order; computed by the workers, if there are any."""
        if not self.workers:
            return map(job, plan)
        # Its own generator, because the loader draws a number from the global one otherwise.
        options = {
            "num_workers": self.workers,
            "multiprocessing_context": self.context,
            "worker_init_fn": _ignore_signals,
        }
        loader: Any = torch_data.DataLoader(
            _Jobs(job), sampler=plan, batch_size=None, generator=torch.Generator(), **options
        )
        return iter(loader)


def _ignore_signals(worker: int) -> None:
    """Leave signals to the process that trains: it saves, stops, and ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True)
class _Jobs(torch_data.Dataset[Any]):
    """Batches as the items of a data set, for the workers of a ``DataLoader``."""

    job: Any

    def __getitem__(self, batch: tuple[int, Tensor]) -> Any:
        return self.job(batch)


def _images(items: Items, seed: int, batch: tuple[int, Tensor]) -> Tensor | DataError:
    """The images of a batch. An error is returned, because a worker would add its traceback to the message."""
    epoch, index = batch
    rows = items.rows[index]
    try:
        return stacked(items.items(rows, seed, epoch), items.like, rows.tolist(), items.name, items.channels)
    except DataError as error:
        return error


def _seconds(items: Items, batch: tuple[int, Tensor]) -> list[Item] | DataError:
    """The items of a batch without their images."""
    rows = items.rows[batch[1]]
    try:
        found = items.items(rows)
        stacked(found, items.like, rows.tolist(), items.name, items.channels)
    except DataError as error:
        return error
    return [item._replace(image=torch.empty(0)) for item in found]


def from_dataset(
    source: torch_data.Dataset[Any],
    *,
    workers: int = 0,
    context: Any = None,
    channels: int | None = None,
    notes: Sequence[str] = (),
) -> DataSet:
    """A data set whose images are the items of a map-style ``Dataset``; see the top of this module.

    Args:
        source: The data set; its items are those of :mod:`halikit.data.item`.
        workers: Processes that read items in advance.
        context: How these are started, as ``multiprocessing_context`` of a ``DataLoader``.
        channels: Channels of images, 1 to 16, in place of 1 or 3.
        notes: What to say about it.

    Raises:
        DataError: If it has no length, fewer than two items, or items that cannot be used.
    """
    name = type(source).__name__
    try:
        n = len(source)  # type: ignore[arg-type]
    except TypeError:
        raise DataError(f"{name} has no length: a map-style Dataset defines __len__ and __getitem__") from None
    if n < 2:
        raise DataError(f"{name}: {n} items; at least two are needed, one of them held out")
    none = Items(source, name, torch.empty(0), torch.arange(n), workers, context, channels)
    rows = evenly_spaced(PROBED, n)
    probed = none.items(rows)
    items = replace(none, like=probed[0].image)
    check_probe(stacked(probed, items.like, rows.tolist(), name, channels), name, channels)
    labels, attributes = _labels_and_attributes(items, rows, probed)
    classes = _classes(source, labels, name)
    cut = n - max(1, n // 10)
    everything = Split(items, labels, attributes)
    names = () if attributes is None else tuple(map(str, range(attributes.shape[1])))
    data = divided(name, everything[:cut], everything[cut:], classes=classes, attributes=names)
    said = [*notes, *_unusual(data, probed)]
    return replace(with_occurring_classes(data), notes=tuple(said))


def left_out(loader: torch_data.DataLoader[Any]) -> str:
    """What is not used of a ``DataLoader``, in a sentence."""
    if isinstance(loader.dataset, torch_data.IterableDataset):
        return "of the DataLoader the data set alone is used: a stream is read item by item, without workers"
    sampler = type(loader.sampler).__name__
    note = (
        f"of the DataLoader the data set and num_workers are used, but not batch size, order ({sampler}) and "
        "collate_fn: training.batch_size and training.seed decide"
    )
    if sampler in ("SequentialSampler", "RandomSampler"):
        return note
    return f"{note}; for a part of the data give a torch.utils.data.Subset"


def check_probe(images: Tensor, name: str, channels: int | None = None) -> None:
    """Refuse images that seem to have another range than −1 … 1, or 0 … 255 for bytes, as ``array:`` does.

    Args:
        images: ``(b, *shape)``, of which the values are allowed.
        name: The data set, for messages.
        channels: Channels of images, if not 1 or 3.
    """
    low, high = lowest_and_highest(images)
    if are_images(images, channels) and (low < high or abs(low) > 1):
        check_range(None, np.dtype(str(images.dtype).removeprefix("torch.")), low, high, name)


def _labels_and_attributes(items: Items, rows: Tensor, probed: Sequence[Item]) -> tuple[Tensor | None, Tensor | None]:
    """The labels and the attributes of all items; each is ``None`` if the items have none."""
    if probed[0].label is None and probed[0].attributes is None:
        return None, None
    listed = _listed_labels(items.source)
    if listed is not None and listed[rows.numpy()].tolist() == [item.label for item in probed]:
        check_labels(listed, MAX_CLASSES - 1, items.name)
        return torch.from_numpy(listed.astype(np.int64)), None
    found = items.seconds()
    first = found[0]
    for row, item in enumerate(found):
        same = (item.label is None) == (first.label is None)
        if not same or len(item.attributes or ()) != len(first.attributes or ()):
            raise DataError(f"{items.name}: item {row} has another kind of label than item 0")
    if first.label is None:
        return None, torch.tensor([item.attributes for item in found])
    labels = np.array([item.label for item in found], np.int64)
    check_labels(labels, MAX_CLASSES - 1, items.name)
    return torch.from_numpy(labels), None


def _listed_labels(source: Any) -> NDArray[Any] | None:
    """The labels that a data set lists beside its items, if they are integers, one for each."""
    if isinstance(source, torch_data.Subset):
        whole = _listed_labels(source.dataset)
        return None if whole is None else whole[np.asarray(source.indices, np.int64)]
    listed = getattr(source, "targets", getattr(source, "labels", None))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            labels = np.asarray(listed)
    except (ValueError, TypeError, RuntimeError):
        return None
    return labels if labels.shape == (len(source),) and np.issubdtype(labels.dtype, np.integer) else None


def _classes(source: Any, labels: Tensor | None, name: str) -> tuple[str, ...]:
    """The names of the classes: those of the data set, otherwise the numbers."""
    if labels is None:
        return ()
    highest = int(labels.max())
    while isinstance(source, torch_data.Subset):
        source = source.dataset
    names = getattr(source, "classes", None)
    named = isinstance(names, list | tuple) and len(names) > highest and all(isinstance(entry, str) for entry in names)
    return tuple(names) if named and names else tuple(map(str, range(highest + 1)))


def _unusual(data: DataSet, probed: Sequence[Item]) -> Iterator[str]:
    """What is worth saying about the items and the parts."""
    unread = next((item.unread for item in probed if item.unread), "")
    if unread:
        yield f"of each item the image and the label are read, not {unread}"
    if data.train.labels is not None and data.test.labels is not None:
        missing = set(data.test.labels.unique().tolist()) - set(data.train.labels.unique().tolist())
        if missing:
            some = ", ".join(data.classes[label] for label in sorted(missing)[:5])
            yield f"the last tenth is held out, and all items of class {some} are in it: are they sorted? Shuffle them"
