"""``svhn:``: Street View House Numbers, cropped digits, from the official ``*_32x32.mat``.

The files are read as streams: whatever their size, only some thousand images are in flight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from halikit.data.dataset import DataError, DataSet, Split
from halikit.data.image import resize_all
from halikit.data.mat import BadMatError, Variable, variables
from halikit.data.request import Request
from halikit.data.tree import DAMAGE, File, Tree, glance, open_tree, printable

__all__ = ["has_svhn", "load_svhn", "load_svhn_extra"]

SHAPE = (32, 32, 3)  # row, column, channel: the row runs fastest in the file
CLASSES = tuple(map(str, range(10)))

_NAMES = {part: f"{part}_32x32.mat" for part in ("extra", "train", "test")}
_BLOCK = 4096  # images read at a time


def has_svhn(path: Path) -> bool:
    """Whether files of SVHN lie here."""
    return bool(set(_NAMES.values()) & glance(path))


def load_svhn(request: Request) -> DataSet:
    """Read ``train_32x32.mat`` and ``test_32x32.mat``; the last tenth to train on is validation.

    Returns:
        Images ``(3, 32, 32)`` uint8; classes "0" … "9", where the files' label 10 means 0.

    Raises:
        DataError: If a file is missing or is not what it should be, or images and labels do not agree.
    """
    return _load(request, ("train", "test"))


def load_svhn_extra(request: Request) -> DataSet:
    """The same with ``extra_32x32.mat`` to train on as well, before the others; validation and test stay the same."""
    return _load(request, ("extra", "train", "test"))


def _load(request: Request, wanted: tuple[str, ...]) -> DataSet:
    with open_tree(request.path) as tree:
        files = {part: _find(tree, part, request.spec) for part in wanted}
        counts = {part: _count(tree, file) for part, file in files.items()}
        total, side = sum(counts.values()), request.size or 32
        canvas = request.allocate((total, 3, side, side), CLASSES)
        labels = np.empty(total, np.int64)
        start = 0
        for part, file in files.items():
            rows = slice(start, start + counts[part])
            for done in _fill(tree, file, canvas[rows], labels[rows]):
                request.progress(start + done, total)
            start += counts[part]
    everything = Split(torch.from_numpy(canvas), torch.from_numpy(labels))
    held = counts["train"] // 10
    last = total - counts["test"]
    return DataSet(
        spec=request.spec,
        shape=(3, side, side),
        classes=CLASSES,
        train=everything[: last - held],
        validation=everything[last - held : last] if held else None,
        test=everything[last:],
    )


def _find(tree: Tree, part: str, spec: str) -> File:
    found = [file for file in tree.files if file.parts[-1] == _NAMES[part]]
    if len(found) != 1:
        raise DataError(f"{spec}: {'no' if not found else 'more than one'} {_NAMES[part]} here")
    return found[0]


def _count(tree: Tree, file: File) -> int:
    """How many images a file has."""
    with _variables(tree, file) as (shown, arrays):
        for array in arrays:
            if array.name == "X":
                if len(array.shape) != 4 or array.shape[:3] != SHAPE or array.dtype != np.uint8 or not array.shape[3]:
                    by = "×".join(map(str, array.shape))
                    raise DataError(f"{shown}: X is {by} {array.dtype.name}, not 32×32×3×N uint8 with N ≥ 1")
                return array.shape[3]
        raise DataError(f"{shown}: no array X with the images in it")


def _fill(tree: Tree, file: File, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Iterator[int]:
    """Read images and labels; yields how many images are done."""
    with _variables(tree, file) as (shown, arrays):
        found = set()
        for array in arrays:
            if array.name == "X":
                for start in range(0, len(images), _BLOCK):
                    some = images[start : start + _BLOCK]
                    _put(array, some)
                    yield start + len(some)
            elif array.name == "y":
                labels[:] = _labels(array, len(images), shown)
            found.add(array.name)
        if "y" not in found:
            raise DataError(f"{shown}: no array y with the labels in it")


def _put(array: Variable, images: NDArray[np.uint8]) -> None:
    values = array.read(len(images) * 3 * 32 * 32)
    planes = values.reshape(-1, 32, 32).swapaxes(1, 2)  # as stored: column by column
    side = images.shape[2]
    images[:] = (planes if side == 32 else resize_all(planes, side)).reshape(images.shape)


def _labels(array: Variable, count: int, shown: str) -> NDArray[np.int64]:
    if sorted(array.shape) != sorted([1] * (len(array.shape) - 1) + [count]):
        by = "×".join(map(str, array.shape))
        raise DataError(f"{shown}: {count} images, but {by} labels: they do not match")
    values = array.read(count)
    wrong = ~np.isin(values, range(1, 11))
    if wrong.any():
        at = int(wrong.argmax())
        raise DataError(f"{shown}: label {at} is {values[at]}; labels go from 1 to 10, and 10 means 0")
    return values.astype(np.int64) % 10


@contextmanager
def _variables(tree: Tree, file: File) -> Iterator[tuple[str, Iterator[Variable]]]:
    """The arrays of a file, beside the name to show for it; what goes wrong becomes one line."""
    shown = printable(str(tree.root / file.path))
    try:
        with tree.open(file) as stream:
            yield shown, variables(stream)
    except DataError:
        raise
    except BadMatError as error:
        raise DataError(f"{shown}: {error}") from None
    except DAMAGE as error:
        raise DataError(f"{shown} cannot be read: {error}") from error
