"""``svhn:``: Street View House Numbers, cropped digits, from the official ``*_32x32.mat``.

The files are read as streams, a few thousand images at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from halikit.data.dataset import DataError, DataSet, Request, Split, check_labels, divided
from halikit.data.image import resize_all
from halikit.data.mat import BadMatError, Variable, variables
from halikit.data.tree import File, Tree, first_names, open_tree, reading

__all__ = ["has_svhn", "load_svhn", "load_svhn_extra"]

SHAPE = (32, 32, 3)  # row, column, channel; in the file, the row changes fastest
CLASSES = tuple("0123456789")

_NAMES = {part: f"{part}_32x32.mat" for part in ("extra", "train", "test")}
_IMAGES = 4096  # read at a time


def has_svhn(path: Path) -> bool:
    """Whether a directory or archive has files of SVHN."""
    return not first_names(path).isdisjoint(_NAMES.values())


def load_svhn(request: Request) -> DataSet:
    """Read ``train_32x32.mat`` and ``test_32x32.mat``; the last tenth of the training images is validation.

    Returns:
        Images ``(3, 32, 32)`` uint8; classes "0" … "9", where label 10 of the files means 0.

    Raises:
        DataError: If a file is missing or has other content, or images and labels do not agree.
    """
    return _load(request, ("train", "test"))


def load_svhn_extra(request: Request) -> DataSet:
    """The same with ``extra_32x32.mat`` as further training images, before the others; validation and test are equal.

    Returns:
        As :func:`load_svhn`.

    Raises:
        DataError: As :func:`load_svhn`.
    """
    return _load(request, ("extra", "train", "test"))


def _load(request: Request, wanted: tuple[str, ...]) -> DataSet:
    with open_tree(request.path) as tree:
        found = tree.find([_NAMES[part] for part in wanted], spec=request.spec)
        files = {part: found[_NAMES[part]] for part in wanted}
        counts = {part: _count(tree, file) for part, file in files.items()}
        total, side = sum(counts.values()), request.size or 32
        images = request.allocate((total, 3, side, side), CLASSES)
        labels = np.empty(total, np.int64)
        start = 0
        for part, file in files.items():
            rows = slice(start, start + counts[part])
            for done in _fill(tree, file, images[rows], labels[rows], request.size):
                request.progress(start + done, total)
            start += counts[part]
    everything = Split(torch.from_numpy(images), torch.from_numpy(labels))
    last = total - counts["test"]
    train, test = everything[:last], everything[last:]
    return divided(request.spec, train, test, num_validation=counts["train"] // 10, classes=CLASSES)


def _count(tree: Tree, file: File) -> int:
    """The number of images in a file."""
    path = tree.full_path(file)
    with _variables(tree, file) as arrays:
        for array in arrays:
            if array.name == "X":
                if len(array.shape) != 4 or array.shape[:3] != SHAPE or array.dtype != np.uint8 or not array.shape[3]:
                    raise DataError(f"{path}: X is {array.by} {array.dtype.name}, not 32×32×3×N uint8 with N ≥ 1")
                return array.shape[3]
    raise DataError(f"{path}: no array X with the images in it")


def _fill(
    tree: Tree, file: File, images: NDArray[np.uint8], labels: NDArray[np.int64], size: int | None
) -> Iterator[int]:
    """Read images and labels; yields the number of images that are done."""
    path = tree.full_path(file)
    found = set()
    with _variables(tree, file) as arrays:
        for array in arrays:
            found.add(array.name)
            if array.name == "X":
                for start in range(0, len(images), _IMAGES):
                    some = images[start : start + _IMAGES]
                    some[:] = resize_all(_planes(array, len(some)), size)
                    yield start + len(some)
            elif array.name == "y":
                labels[:] = _labels(array, len(images), path)
    if "y" not in found:
        raise DataError(f"{path}: no array y with the labels in it")


def _planes(array: Variable, count: int) -> NDArray[np.generic]:
    """The next ``count`` images, ``(count, 3, 32, 32)``; the file has each plane column by column."""
    return array.read(count * 3 * 32 * 32).reshape(count, 3, 32, 32).swapaxes(2, 3)


def _labels(array: Variable, count: int, path: str) -> NDArray[np.int64]:
    """The digits 0 to 9; the file has 10 for 0."""
    if sorted(array.shape) != sorted([1] * (len(array.shape) - 1) + [count]):
        raise DataError(f"{path}: {count} images, but {array.by} labels: they do not match")
    values = array.read(count)
    check_labels(values, 10, path, first=1)
    return values.astype(np.int64) % 10


@contextmanager
def _variables(tree: Tree, file: File) -> Iterator[Iterator[Variable]]:
    """The arrays of a file; errors name the file."""
    path = tree.full_path(file)
    with reading(path), tree.open(file) as stream:
        try:
            yield variables(stream)
        except BadMatError as error:
            raise DataError(f"{path}: {error}") from None
