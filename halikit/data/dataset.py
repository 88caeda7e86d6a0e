"""What a source is called with, and what it returns: a data set, with batches from memory or from a mapped file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halikit.errors import InputError
from halikit.settings import ContextKind
from halikit.utils.tensors import evenly_spaced

__all__ = [
    "DataError",
    "DataNotice",
    "DataSet",
    "Kind",
    "Request",
    "Split",
    "Store",
    "check_channels",
    "check_labels",
    "divided",
    "named",
    "with_occurring_classes",
]

# What arrays hold, where it is neither images nor vectors.
Kind = Literal["sequence", "volume"]

# Sources whose images may have other channels than grey and colour.
_WITH_CHANNELS = ("array", "pack", "folder", "folder-splits", "folder-classes", "paths")
_MOST_CHANNELS = 16

_MAX_SHARE = 0.5  # of a GPU's free memory that images may take


class DataError(InputError):
    """Data that cannot be used. The message says in a line or two what is wrong, where, and what would be right."""


class DataNotice(UserWarning):
    """What a reader left out or assumed. With ``strict`` it is refused instead."""


@dataclass(frozen=True)
class Request:
    """One call of :func:`halikit.data.load`.

    Args:
        spec: The whole data spec, ``prefix:place``.
        size: Side of the square that images are cropped and resized to; ``None`` keeps their own size.
        strict: Whether a single file that cannot be used is an error.
        on_progress: Called with (images done, images in total); in the last call the two are equal.
        kind: What arrays hold: ``"sequence"`` or ``"volume"``; ``None`` for images and vectors.
        channels: Channels of images, 1 to 16, to be kept as they are; ``None`` for grey and colour.
        canvas: Called with a shape ``(n, C, H, W)`` and the names of classes and attributes; returns an array of that
            shape for the images. ``None`` for an array in memory.

    Raises:
        DataError: If the size is not an integer from 1 to 4096, channels are not from 1 to 16, the kind is unknown, or
            kind or channels are not for this source.
    """

    spec: str
    size: int | None = None
    strict: bool = False
    kind: Kind | None = None
    channels: int | None = None
    on_progress: Callable[[int, int], None] | None = None
    canvas: Callable[[tuple[int, ...], Sequence[str]], NDArray[np.uint8]] | None = None

    def __post_init__(self) -> None:
        whole = isinstance(self.size, int) and not isinstance(self.size, bool)
        if self.size is not None and not (whole and 1 <= self.size <= 4096):
            raise DataError(f"size={self.size!r}: the side of an image is an integer from 1 to 4096")
        if self.kind not in (None, *get_args(Kind)):
            raise DataError(f"kind={self.kind!r}: arrays hold a 'sequence' or a 'volume' in each row, if not an image")
        if self.kind and self.spec.partition(":")[0] != "array":
            raise DataError(f"{self.spec}: kind={self.kind} is for arrays, array:FILE")
        check_channels(self.channels)
        if self.channels and (self.kind or self.spec.partition(":")[0] not in _WITH_CHANNELS):
            raise DataError(f"{self.spec}: channels={self.channels} is for images in folders, arrays and packs")

    @property
    def path(self) -> Path:
        """The path after the prefix, with ``~`` expanded.

        Raises:
            DataError: If it does not exist.
        """
        place = Path(self.spec.partition(":")[2]).expanduser()
        if not place.exists():
            raise DataError(f"{self.spec}: no such file or directory: {place}")
        return place

    def progress(self, done: int, total: int) -> None:
        """Report how many images of the total are done."""
        if self.on_progress is not None:
            self.on_progress(done, total)

    def allocate(self, shape: tuple[int, ...], names: Sequence[str] = ()) -> NDArray[np.uint8]:
        """An array for images: in memory, or in the file of a pack, which may be larger than memory.

        Args:
            shape: ``(n, C, H, W)``. A second call with a larger shape may return the same memory.
            names: Names of classes and attributes.

        Returns:
            uint8 of that shape; its values are not defined.

        Raises:
            DataError: If it does not fit into memory.
        """
        if self.canvas is not None:
            return self.canvas(shape, names)
        needed, memory = math.prod(shape), math.inf
        if hasattr(os, "sysconf"):
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > memory:
            raise DataError(
                f"{self.spec}: {shape[0]} images of {shape[3]}×{shape[2]} need {needed / 2**30:.0f} GiB of memory, "
                f"but this machine has {memory / 2**30:.0f} GiB: choose a smaller size, or pack them with "
                "halikit data pack"
            )
        return np.empty(shape, np.uint8)


class Store(Protocol):
    """Images that are read when they are needed. It is used in place of a tensor of all images."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, *shape)``."""

    @property
    def dtype(self) -> torch.dtype:
        """uint8 or float32, as for a tensor of images."""

    @property
    def is_stream(self) -> bool:
        """Whether the images can be read in their own order alone."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Read some images: ``rows`` is ``(b,)`` int64, or a slice."""

    def part(self, rows: slice | Tensor) -> Store:
        """Some of the images, without reading them; ``rows`` is ``(b,)`` int64, or a slice."""

    def read(self, plan: Iterable[tuple[int, Tensor]], seed: int) -> Iterator[Tensor]:
        """Read batches.

        Args:
            plan: For each batch the epoch and the indices of its images, ``(b,)`` int64; ascending for a stream.
            seed: Seed of what is random in the reading.

        Returns:
            For each batch ``(b, *shape)`` on the CPU.
        """


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set.

    Args:
        images: ``(n, *shape)``, either uint8 in 0 … 255 or float32, in [−1, 1] if they are images. Read-only: the
            images may be mapped from a file. A :class:`Store` reads them when they are needed.
        labels: ``(n,)`` int64, indices into the classes of the data set; ``None`` without labels.
        attributes: ``(n, A)`` bool, in the order of the data set's attributes; ``None`` without attributes.
        target: Device of the batches; ``None`` for the device of the images.
        streamed: Whether images are read from a file when they are needed.
        dtype: Dtype of the batches.

    Raises:
        ValueError: If images, labels and attributes differ in number, or one has a wrong dtype.
    """

    images: Tensor | Store
    labels: Tensor | None = None
    attributes: Tensor | None = None
    target: torch.device | None = None
    streamed: bool = False
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        n = len(self.images)
        labels, attributes = self.labels, self.attributes
        if self.images.dtype not in (torch.uint8, torch.float32):
            raise ValueError(f"images are uint8 or float32, got {self.images.dtype}")
        if labels is not None and (labels.shape != (n,) or labels.dtype != torch.int64):
            raise ValueError(f"{n} images need ({n},) int64 labels, got {tuple(labels.shape)} of {labels.dtype}")
        if attributes is not None and (attributes.dim() != 2 or len(attributes) != n or attributes.dtype != torch.bool):
            raise ValueError(
                f"{n} images need ({n}, A) bool attributes, got {tuple(attributes.shape)} of {attributes.dtype}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def context(self, kind: ContextKind) -> Tensor:
        """What a conditional model reads of each datum: labels, ``(n,)`` int64, or attributes, ``(n, A)`` float32.

        Raises:
            DataError: If the part has none.
        """
        found = self.labels if kind == "labels" else self.attributes
        if found is None:
            raise DataError(f"the model reads the {kind} of each datum, and these data have none")
        return found if kind == "labels" else found.float()

    def __getitem__(self, rows: slice | Tensor) -> Split:
        """Some of the images with their labels and attributes; those of a slice share memory."""
        return replace(
            self,
            images=self.images[rows] if isinstance(self.images, Tensor) else self.images.part(rows),
            labels=None if self.labels is None else self.labels[rows],
            attributes=None if self.attributes is None else self.attributes[rows],
        )

    def evenly(self, n: int) -> Split:
        """``n`` evenly spaced data, or all if there are fewer."""
        return self if n >= len(self) else self[evenly_spaced(n, len(self)).to(self.home)]

    @property
    def takes_time(self) -> bool:
        """Whether a batch is worth preparing in a thread: it is read from a file or copied to another device."""
        return self.streamed or self.device != self.home

    @property
    def home(self) -> torch.device:
        """Device that the images are read from."""
        return self.images.device if isinstance(self.images, Tensor) else torch.device("cpu")

    @property
    def device(self) -> torch.device:
        """Device of the batches."""
        return self.target or self.home

    def batch(self, index: Tensor | None = None) -> Tensor:
        """The images at ``index``, as the networks take them.

        Args:
            index: ``(b,)`` int64, on any device; by default all.

        Returns:
            ``(b, *shape)`` of :attr:`dtype`, in [−1, 1] for images, on :attr:`device`.
        """
        index = torch.arange(len(self)) if index is None else index
        index = index.to(self.home)
        if isinstance(self.images, Tensor) and self.device.type == "cuda" and self.home.type == "cpu":
            # Copied as uint8 from pinned memory, so that the host need not wait.
            pinned = torch.empty(len(index), *self.images.shape[1:], dtype=self.images.dtype, pin_memory=True)
            return self._prepared(torch.index_select(self.images, 0, index, out=pinned))
        return self._prepared(self.images[index])

    def read(self, plan: Iterable[tuple[int, Tensor]], seed: int) -> Iterator[Tensor]:
        """The images of batches in the order of a plan, as the networks take them; see :meth:`Store.read`."""
        if isinstance(self.images, Tensor):
            yield from (self.batch(index) for _, index in plan)
        else:
            yield from map(self._prepared, self.images.read(plan, seed))

    def _prepared(self, images: Tensor) -> Tensor:
        """Images as they are stored, on :attr:`device` and as the networks take them."""
        images = images.to(self.device, non_blocking=self.device.type == "cuda" and images.is_pinned())
        if images.dtype == torch.uint8:
            return images.to(self.dtype).div_(127.5).sub_(1)
        return images.to(self.dtype)

    def to(self, device: torch.device | str, *, resident: bool = True) -> Split:
        """The same part, with its batches on ``device``.

        Args:
            device: Device of the labels and attributes, and of the batches.
            resident: Whether the images are moved there as well. If not, each batch is gathered on the images' own
                device and then moved, as it is for a :class:`Store` in any case.
        """
        device, images = torch.device(device), self.images
        if resident and isinstance(images, Tensor):
            images = images.to(device)
        else:
            resident = False
        return replace(
            self,
            images=images,
            labels=None if self.labels is None else self.labels.to(device),
            attributes=None if self.attributes is None else self.attributes.to(device),
            target=None if resident else device,
            streamed=self.streamed and not (resident and device.type == "cuda"),
        )


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set with its parts. The validation part is not trained on, and scored only on request.

    Args:
        spec: Its data spec, such as ``mnist:DIR``.
        shape: Shape of one image, ``(C, H, W)``, vector, ``(D,)``, sequence, ``(C, T)``, or volume, ``(C, D, H, W)``.
        classes: Names of the classes in order of their labels; empty without labels.
        train: The training part.
        validation: The part for choices during training; ``None`` if there is none.
        test: The part for final results.
        skipped: Files that were left out, as (relative path, reason).
        attributes: Names of the attributes in order; empty without attributes.
        origin: For a pack, the data spec that it was made from, without directories.
        notes: What the reader assumed, or found unusual, a sentence each.
    """

    spec: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split
    skipped: tuple[tuple[str, str], ...] = ()
    attributes: tuple[str, ...] = ()
    origin: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, Split]:
        """The existing parts by name, in the order train, validation, test. Validation and test may be one object."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def distinct_parts(self) -> list[Split]:
        """The existing parts, each object once."""
        return list({id(part): part for part in self.parts.values()}.values())

    @property
    def held_out(self) -> Split:
        """The part to measure on while training: validation if it exists, otherwise test."""
        return self.test if self.validation is None else self.validation

    @property
    def context_kind(self) -> ContextKind | None:
        """What a conditional model reads by default: labels if there are any, else attributes, else ``None``."""
        if self.train.labels is not None:
            return "labels"
        return None if self.train.attributes is None else "attributes"

    def context_size(self, kind: ContextKind) -> int:
        """Number of classes or of attributes.

        Raises:
            DataError: If there are none.
        """
        if (self.train.labels if kind == "labels" else self.train.attributes) is None:
            raise DataError(f"{self.spec} has no {kind}, which a conditional model reads; use data that have them")
        return len(self.classes if kind == "labels" else self.attributes)

    def check_batch(self, size: int) -> None:
        """Raise a DataError if the training part has fewer images than a batch of ``size``."""
        if len(self.train) < size:
            raise DataError(
                f"{self.spec} has {len(self.train)} training samples, fewer than a batch of {size}; "
                "lower training.batch_size"
            )

    def to(self, device: torch.device | str) -> DataSet:
        """The same data set with its batches on ``device``.

        The images of all parts are moved too, unless they would take more than half of a GPU's free memory.
        """
        device = torch.device(device)
        nbytes = sum(part.images.nbytes for part in self.distinct_parts if isinstance(part.images, Tensor))
        resident = device.type != "cuda" or nbytes <= _MAX_SHARE * torch.cuda.mem_get_info(device)[0]
        moved = {id(part): part.to(device, resident=resident) for part in self.distinct_parts}
        return replace(
            self,
            train=moved[id(self.train)],
            validation=None if self.validation is None else moved[id(self.validation)],
            test=moved[id(self.test)],
        )

    def in_dtype(self, dtype: torch.dtype) -> DataSet:
        """The same data set with its batches of another floating dtype."""
        changed = {id(part): replace(part, dtype=dtype) for part in self.distinct_parts}
        validation = None if self.validation is None else changed[id(self.validation)]
        return replace(self, train=changed[id(self.train)], validation=validation, test=changed[id(self.test)])


def divided(
    spec: str,
    train: Split,
    test: Split,
    *,
    num_validation: int = 0,
    classes: tuple[str, ...] = (),
    attributes: tuple[str, ...] = (),
) -> DataSet:
    """A data set whose validation part is the end of its training part.

    Args:
        spec: Its data spec.
        train: Training and validation images.
        test: The test part.
        num_validation: Number of images at the end of ``train`` that are validation; with 0 there is no such part.
        classes: Names of the classes.
        attributes: Names of the attributes.
    """
    last = len(train) - num_validation
    validation = train[last:] if num_validation else None
    shape = tuple(train.images.shape[1:])
    return DataSet(spec, shape, classes, train[:last], validation, test, attributes=attributes)


def with_occurring_classes(data: DataSet) -> DataSet:
    """The same data set without the classes of which it has no datum; the labels are numbered anew.

    Data whose labels all occur are returned as they are.
    """
    labels = [part.labels for part in data.distinct_parts if part.labels is not None]
    if not labels:
        return data
    used = torch.cat(labels).unique()
    if len(used) == len(data.classes):
        return data
    changed = {
        id(part): replace(part, labels=torch.searchsorted(used, part.labels))
        for part in data.distinct_parts
        if part.labels is not None
    }
    return replace(
        data,
        classes=tuple(data.classes[label] for label in used.tolist()),
        train=changed[id(data.train)],
        validation=None if data.validation is None else changed[id(data.validation)],
        test=changed[id(data.test)],
    )


def named(shape: Sequence[int]) -> str:
    """What data of a shape are: vectors, sequences, images or volumes."""
    return {1: "vectors", 2: "sequences", 3: "images", 4: "volumes"}.get(len(shape), "data")


def check_channels(channels: int | None) -> None:
    """Raise a DataError if a number of channels is not an integer from 1 to 16, or ``None``."""
    whole = isinstance(channels, int) and not isinstance(channels, bool)
    if channels is not None and not (whole and 1 <= channels <= _MOST_CHANNELS):
        raise DataError(f"channels={channels!r}: images have 1 to {_MOST_CHANNELS} channels")


def check_labels(labels: NDArray[Any], last: int, where: str, *, first: int = 0) -> None:
    """Refuse labels outside of their range.

    Args:
        labels: ``(n,)`` integers.
        last: The highest label.
        where: The file or data spec, for the message.
        first: The lowest label.

    Raises:
        DataError: If a label is lower than ``first`` or higher than ``last``.
    """
    wrong = (labels < first) | (labels > last)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"{where}: label {row} is {labels[row]}; labels go from {first} to {last}")
