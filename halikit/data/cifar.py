"""``cifar10:`` and ``cifar100:``: the binary versions, as a folder or as the official archive.

A file is a sequence of records: one label byte (in CIFAR-100 the superclass, then the class) and 3,072 bytes of pixels,
which are the red, green and blue planes of 32×32, row by row. The python version is refused: it is pickled, and pickled
files can run any code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from halikit.data.dataset import DataError, DataSet, Request, Split, check_labels, divided
from halikit.data.image import resize_all
from halikit.data.tree import File, Tree, first_names, open_tree, reading
from halikit.utils.text import decode_text

__all__ = ["has_cifar10", "has_cifar100", "load_cifar10", "load_cifar100"]

PIXELS = 3 * 32 * 32
MAX_BYTES = 2**28  # of one file; the largest official one has 154 million
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class _Version:
    """One of the two data sets.

    Args:
        title: Its name.
        train: Names of the training files, in order.
        test: Name of the test file.
        names: For each label byte, the file with the names of its values and their number.
        archive: Name of the official archive.
        pickled: Names of the files in the python version.
    """

    title: str
    train: tuple[str, ...]
    test: str
    names: tuple[tuple[str, int], ...]
    archive: str
    pickled: tuple[str, ...]


_TEN = _Version(
    title="CIFAR-10",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test="test_batch.bin",
    names=(("batches.meta.txt", 10),),
    archive="cifar-10-binary.tar.gz",
    pickled=("data_batch_1", "test_batch", "batches.meta"),
)
_HUNDRED = _Version(
    title="CIFAR-100",
    train=("train.bin",),
    test="test.bin",
    names=(("coarse_label_names.txt", 20), ("fine_label_names.txt", 100)),
    archive="cifar-100-binary.tar.gz",
    pickled=("train", "test", "meta"),
)


def has_cifar10(path: Path) -> bool:
    """Whether a directory or archive has files of CIFAR-10; also of the python version, which is refused later."""
    return not first_names(path).isdisjoint((*_TEN.train, _TEN.test, *_TEN.pickled, _TEN.archive))


def has_cifar100(path: Path) -> bool:
    """Whether a directory or archive has files of CIFAR-100; also of the python version, which is refused later."""
    seen = first_names(path)
    return not seen.isdisjoint(("train.bin", "fine_label_names.txt", _HUNDRED.archive)) or seen.issuperset(
        _HUNDRED.pickled
    )


def load_cifar10(request: Request) -> DataSet:
    """Read the five training batches and the test batch; the last tenth of the training images is validation.

    Returns:
        Images ``(3, 32, 32)`` uint8 and ten classes.

    Raises:
        DataError: If a file is missing, is not whole records, has a label beyond the classes, or is pickled.
    """
    return _load(request, _TEN)


def load_cifar100(request: Request) -> DataSet:
    """Read ``train.bin`` and ``test.bin``; the last tenth of the training images is validation.

    Returns:
        Images ``(3, 32, 32)`` uint8 and a hundred classes; the twenty superclasses as attributes.

    Raises:
        DataError: As :func:`load_cifar10`.
    """
    return _load(request, _HUNDRED)


def _load(request: Request, version: _Version) -> DataSet:
    archive = request.path / version.archive
    with open_tree(archive if archive.is_file() else request.path) as tree:
        files = _find(tree, version, request.spec)
        names = [_names(tree, files.get(name), count) for name, count in version.names]
        ordered = tree.in_storage_order(files[name] for name in (*version.train, version.test))
        records = {file.name: _read(tree, file, names) for file in ordered}
    train = _split([records[name] for name in version.train], names, request.size)
    test = _split([records[version.test]], names, request.size)
    request.progress(len(train) + len(test), len(train) + len(test))
    superclasses = names[0] if len(names) > 1 else ()
    return divided(
        request.spec, train, test, num_validation=len(train) // 10, classes=names[-1], attributes=superclasses
    )


def _find(tree: Tree, version: _Version, spec: str) -> dict[str, File]:
    """The files by name."""
    required = (*version.train, version.test)
    existing = {file.name for file in tree.files}
    if existing.isdisjoint(required) and not existing.isdisjoint(version.pickled):
        raise DataError(
            f"{spec}: this is the python version of {version.title}, which is pickled and could run any code;\n"
            f"take the binary version, {version.archive}, from https://www.cs.toronto.edu/~kriz/cifar.html"
        )
    hint = f"; {version.title} comes as {version.archive}"
    return tree.find(required, [name for name, _ in version.names], spec=spec, hint=hint)


def _names(tree: Tree, file: File | None, count: int) -> tuple[str, ...]:
    """The names in a file, one per line; without the file, those of CIFAR-10 or numbers."""
    if file is None:
        return CIFAR10 if count == len(CIFAR10) else tuple(map(str, range(count)))
    lines = tuple(decode_text(tree.read(file)).split())
    if len(lines) != count:
        raise DataError(f"{tree.full_path(file)}: {len(lines)} names for {count} classes")
    return lines


def _read(tree: Tree, file: File, names: Sequence[tuple[str, ...]]) -> NDArray[np.uint8]:
    """The records of one file, ``(n, label bytes + 3072)``."""
    path, record = tree.full_path(file), len(names) + PIXELS
    if not 0 < file.nbytes <= MAX_BYTES or file.nbytes % record:
        raise DataError(f"{path}: {file.nbytes} bytes are not whole records of {record} bytes; is the file complete?")
    with reading(path):
        records = np.frombuffer(tree.read(file), np.uint8).reshape(file.nbytes // record, record)
    for column, known in enumerate(names):
        check_labels(records[:, column], len(known) - 1, path)
    return records


def _split(files: Sequence[NDArray[np.uint8]], names: Sequence[tuple[str, ...]], size: int | None) -> Split:
    labels = np.concatenate([records[:, : len(names)] for records in files]).astype(np.int64)
    images = np.concatenate([records[:, len(names) :] for records in files]).reshape(-1, 3, 32, 32)
    attributes = torch.from_numpy(labels[:, :1] == np.arange(len(names[0]))) if len(names) > 1 else None
    return Split(torch.from_numpy(resize_all(images, size)), torch.from_numpy(labels[:, -1].copy()), attributes)
