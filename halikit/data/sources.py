"""The sources of data: one entry here and one module for each.

To add a source, write a module with a function from a :class:`~halikit.data.dataset.Request` to a
:class:`~halikit.data.DataSet`, and enter it below. The function itself imports what is slow to import.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from halikit.data.array import from_array, from_tensor, has_array, load_array
from halikit.data.celeba import has_celeba, load_celeba
from halikit.data.cifar import has_cifar10, has_cifar100, load_cifar10, load_cifar100
from halikit.data.dataset import DataError, DataNotice, DataSet, Kind, Request, check_channels
from halikit.data.digits import load_digits
from halikit.data.folder import has_images, load_classes, load_folder, load_paths, load_splits
from halikit.data.idx import has_idx, load_mnist
from halikit.data.imagenet import has_imagenet, load_imagenet
from halikit.data.own import from_dataset, left_out
from halikit.data.pack import is_pack, load_pack, packing
from halikit.data.stream import from_stream
from halikit.data.svhn import has_svhn, load_svhn, load_svhn_extra
from halikit.data.tree import first_archive, printable

__all__ = ["SOURCES", "Given", "Source", "as_data_set", "load", "pack", "recognise"]


# What as_data_set makes a data set of.
Given = DataSet | str | Path | Sequence[str | Path] | Tensor | NDArray[Any] | Dataset[Any] | DataLoader[Any]


@dataclass(frozen=True)
class Source:
    """A kind of data.

    Args:
        summary: What it reads, in one line.
        load: Reads a data set.
        recognises: Whether a path holds data of this kind; ``None`` for a source without a path.
    """

    summary: str
    load: Callable[[Request], DataSet]
    recognises: Callable[[Path], bool] | None = None


# A path without a prefix is tried in this order.
SOURCES: dict[str, Source] = {
    "digits": Source("scikit-learn's handwritten digits, 8×8: nothing to download", load_digits),
    "pack": Source("a file made by halikit data pack", load_pack, is_pack),
    "array": Source("arrays in .npy, .npz or .safetensors", load_array, has_array),
    "mnist": Source("MNIST and data sets in its format, the official IDX files, gzipped or not", load_mnist, has_idx),
    "cifar10": Source("CIFAR-10, the binary version, as a folder or .tar.gz", load_cifar10, has_cifar10),
    "cifar100": Source("CIFAR-100, the binary version, as a folder or .tar.gz", load_cifar100, has_cifar100),
    "svhn": Source("SVHN's cropped digits, train_32x32.mat and test_32x32.mat", load_svhn, has_svhn),
    "svhn-extra": Source("the same, with extra_32x32.mat as further training images", load_svhn_extra, has_svhn),
    "celeba": Source("aligned CelebA faces with their attributes, as a folder, .zip or .tar", load_celeba, has_celeba),
    "imagenet": Source("ImageNet, train/ and val/ with class folders, at 128×128", load_imagenet, has_imagenet),
    "folder": Source("any tree of images, or a .zip or .tar of one", load_folder, has_images),
    "folder-splits": Source("the same, where what can be a split is one", load_splits, has_images),
    "folder-classes": Source("the same, where each first-level folder is a class", load_classes, has_images),
}


def load(
    spec: str,
    *,
    size: int | None = None,
    strict: bool = False,
    kind: Kind | None = None,
    channels: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> DataSet:
    """Read a data set into memory. The images of a pack stay in its file.

    Args:
        spec: ``digits``, ``prefix:PLACE`` with a prefix of :data:`SOURCES`, or a path without a prefix, whose kind is
            recognised.
        size: Side of the square that images are cropped and resized to; ``None`` keeps their own size.
        strict: Refuse every file that cannot be used, instead of skipping a few, and everything that the reader would
            have to guess; verify the checksums of a pack.
        kind: ``"sequence"`` or ``"volume"`` if each row of an array is one; for ``array:`` alone.
        channels: Number of channels that images have, 1 to 16, for folders and ``array:``. Without it there are 1 or 3.
        on_progress: Called with (images done, images in total) while reading.
        on_notice: Called with a sentence for each thing that was left out or assumed; by default each is a
            :class:`~halikit.data.DataNotice`, a warning. All are in ``skipped`` and ``notes`` of the result.

    Raises:
        DataError: If the data cannot be used. The message says in a line or two what is wrong, where, and what would be
            right.

    Example:
        >>> digits = load("digits")
        >>> digits.shape, len(digits.train), len(digits.held_out)
        ((1, 8, 8), 1500, 297)
    """
    request = Request(recognise(spec), size=size, strict=strict, kind=kind, channels=channels, on_progress=on_progress)
    data = _load(request)
    for notice in _notices(data):
        if on_notice is None:
            warnings.warn(notice, DataNotice, stacklevel=2)
        else:
            on_notice(notice)
    return data


def as_data_set(
    data: Given,
    *,
    size: int | None = None,
    strict: bool = False,
    kind: Kind | None = None,
    channels: int | None = None,
    workers: int | None = None,
    epoch_images: int | None = None,
) -> DataSet:
    """A data set from what a user gives as data.

    Args:
        data: A data set; a data spec such as ``"digits"``; a path; a list of paths of images; a tensor ``(n, *shape)``,
            see :func:`from_tensor`; a NumPy array, read as ``array:`` reads one; a ``torch.utils.data.Dataset`` or
            ``IterableDataset``, or a ``DataLoader``, of which the data set is used (:mod:`halikit.data.item` says what
            an item is, :mod:`halikit.data.own` and :mod:`halikit.data.stream` how it is read).
        size: As in :func:`load`, for a data spec, paths or an array.
        strict: Likewise, for a data spec or paths.
        kind: Likewise, for a data spec or an array.
        channels: Likewise, for all but a data set.
        workers: Processes that read a ``Dataset``; by default those of the ``DataLoader``, otherwise none. They change
            no result.
        epoch_images: Items in an epoch of an ``IterableDataset``; by default its length.

    Raises:
        DataError: If the data cannot be used, or have no use for ``workers`` or ``epoch_images``.
    """
    source = data.dataset if isinstance(data, DataLoader) else data
    if workers is not None and (not isinstance(source, Dataset) or isinstance(source, IterableDataset)):
        raise DataError("data.workers is for a map-style Dataset of your own, in Python; leave it out here")
    if epoch_images is not None and not isinstance(source, IterableDataset):
        raise DataError("data.epoch_images is for an IterableDataset of your own, in Python; leave it out here")
    if isinstance(data, DataSet):
        return data
    if isinstance(data, str | Path):
        return load(str(data), size=size, strict=strict, kind=kind, channels=channels)
    check_channels(channels)
    if isinstance(data, Tensor):
        found = from_tensor(data, channels=channels)
    elif isinstance(data, np.ndarray):
        found = from_array(data, size=size, kind=kind, channels=channels)
    elif isinstance(data, list | tuple) and data and all(isinstance(path, str | Path) for path in data):
        found = load_paths(data, size=size, strict=strict, channels=channels)
    elif isinstance(data, Dataset | DataLoader):
        if size is not None:
            raise DataError(f"size={size} is for files and arrays; resize the items of a Dataset in the Dataset itself")
        found = _of_torch(data, workers, epoch_images, channels)
    else:
        raise DataError(
            f"data of type {type(data).__name__}; give a data spec, a path, a list of paths of images, a tensor, a "
            "NumPy array, a torch.utils.data.Dataset, IterableDataset or DataLoader, or a halikit.data.DataSet"
        )
    for notice in _notices(found):
        warnings.warn(notice, DataNotice, stacklevel=2)
    return found


def _of_torch(
    data: Dataset[Any] | DataLoader[Any], workers: int | None, epoch_images: int | None, channels: int | None
) -> DataSet:
    """A data set from one of torch's own."""
    notes, context = [], None
    if isinstance(data, DataLoader):
        workers, context = data.num_workers if workers is None else workers, data.multiprocessing_context
        notes.append(left_out(data))
        data = data.dataset
    if isinstance(data, IterableDataset):
        return from_stream(data, epoch_images=epoch_images, channels=channels, notes=notes)
    context = context if workers else None
    return from_dataset(data, workers=workers or 0, context=context, channels=channels, notes=notes)


def pack(
    spec: str,
    out: Path | str,
    *,
    size: int | None = None,
    strict: bool = False,
    kind: Kind | None = None,
    channels: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> DataSet:
    """Decode, crop and resize a data set once, into one file. The images need not fit into memory.

    Args:
        spec: As in :func:`load`.
        out: The file. It appears when it is complete, and then replaces an older pack of that name.
        size: As in :func:`load`.
        strict: As in :func:`load`.
        kind: As in :func:`load`; a pack holds images alone, so other kinds are refused.
        channels: As in :func:`load`.
        on_progress: As in :func:`load`.
        on_notice: As in :func:`load`.

    Returns:
        The pack, opened.

    Raises:
        DataError: If the data cannot be used.
        InputError: If the file cannot be written.
        ResourceError: If the disk is full.
    """
    out = Path(out)
    request = Request(recognise(spec), size=size, strict=strict, kind=kind, channels=channels, on_progress=on_progress)
    with packing(out) as file:
        file.finish(_load(replace(request, canvas=file.allocate)), size)
    return load(f"pack:{out}", on_notice=on_notice)


def recognise(spec: str) -> str:
    """The data spec with its prefix; the prefix of a path is found by what is there.

    Raises:
        DataError: If the prefix is unknown (the message names the nearest), or there are no known data at the path.

    Example:
        >>> recognise("digits")
        'digits'
    """
    prefix, colon, place = spec.partition(":")
    source = SOURCES.get(prefix)
    if source and (place if source.recognises else not colon):
        return spec
    if source and colon:
        raise DataError(f"{spec}: write {_usage(prefix)}")
    path = Path(spec).expanduser()
    if spec and path.exists():
        if owner := _owner(path):
            return f"{owner}:{spec}"
        archive = first_archive(path)
        hint = f"did you mean the archive {archive}?" if archive else f"give its kind, one of {_prefixes()}"
        raise DataError(f"{spec}: no known data set here; {hint}")
    if source:
        raise DataError(f"{spec}: write {_usage(prefix)}")
    if re.fullmatch(r"[A-Za-z][\w+.-]*", prefix) and (colon or difflib.get_close_matches(spec, SOURCES)):
        nearest = difflib.get_close_matches(prefix.lower(), SOURCES, n=1, cutoff=0.5)
        guess = f"did you mean {nearest[0]!r}? There" if nearest else "there"
        raise DataError(f"unknown data source {prefix!r}: {guess} are {_prefixes()}")
    raise DataError(f"{spec!r}: no such file or directory, and not a data source; there are {_prefixes()}")


def _load(request: Request) -> DataSet:
    """Call the source. If the files belong to another source, the error names that one."""
    prefix, _, place = request.spec.partition(":")
    source = SOURCES[prefix]
    try:
        return source.load(request)
    except DataError as error:
        path = Path(place).expanduser()
        try:
            owner = _owner(path) if source.recognises and not source.recognises(path) else None
        except (DataError, OSError):  # nothing is there, or it cannot be read
            owner = None
        if owner is None:
            raise
        message = f"{request.spec}: these are not files of {prefix}, but of {owner}: use {owner}:{place}"
        raise DataError(message) from error


def _notices(data: DataSet) -> list[str]:
    """What to say about a data set that was read: what is left out, in one sentence, and the notes."""
    notices = [f"{data.spec}: {note}" for note in data.notes]
    if len(data.shape) == 3 and data.shape[0] > 3:
        notices.append(f"{data.spec}: {data.shape[0]} channels; pictures show the first three")
    if data.skipped:
        some = "; ".join(f"{printable(path)}: {reason}" for path, reason in data.skipped[:3])
        more = f"; and {len(data.skipped) - 3} more" if len(data.skipped) > 3 else ""
        notices.insert(0, f"{data.spec}: left out: {some}{more}")
    return notices


def _owner(path: Path) -> str | None:
    """The first source that recognises what is at ``path``."""
    return next((name for name, source in SOURCES.items() if source.recognises and source.recognises(path)), None)


def _prefixes() -> str:
    return ", ".join(map(_usage, SOURCES))


def _usage(prefix: str) -> str:
    return f"{prefix}:PLACE" if SOURCES[prefix].recognises else prefix
