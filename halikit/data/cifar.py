"""``cifar10:`` and ``cifar100:``: the binary versions, as a folder or the archive they come in.

A file is nothing but records: one label byte (CIFAR-100: the superclass, then the class) and 3,072 bytes of pixels,
red, green and blue planes of 32×32, row by row. The python version is pickled, which can run any code, and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from halikit.data.dataset import DataError, DataSet, Split
from halikit.data.image import resize_all
from halikit.data.request import Request
from halikit.data.tree import DAMAGE, File, Tree, glance, open_tree, printable

__all__ = ["has_cifar10", "has_cifar100", "load_cifar10", "load_cifar100"]

PIXELS = 3 * 32 * 32
MAX_BYTES = 2**28  # of one file; the largest official one has 154 million
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class _Version:
    """One of the two sets.

    Args:
        title: Its name.
        train: Files to train on, in order.
        test: The file to report on.
        names: The files with the names of what each label byte counts, and how many there are.
        archive: What its owners call the binary version.
        pickled: Files of the python version.
    """

    title: str
    train: tuple[str, ...]
    test: str
    names: tuple[tuple[str, int], ...]
    archive: str
    pickled: tuple[str, ...]

    @property
    def own(self) -> set[str]:
        """The files by which it is recognised; the python version too, to be refused with a reason."""
        return {*self.train, self.test, *self.pickled, self.archive}


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
    """Whether files of CIFAR-10 lie here."""
    return bool(_TEN.own & glance(path))


def has_cifar100(path: Path) -> bool:
    """Whether files of CIFAR-100 lie here."""
    seen = glance(path)
    return bool({"train.bin", "fine_label_names.txt", _HUNDRED.archive} & seen) or set(_HUNDRED.pickled) <= seen


def load_cifar10(request: Request) -> DataSet:
    """Read the five batches to train on and the one to test on; the last tenth to train on is validation.

    Returns:
        Images ``(3, 32, 32)`` uint8 and ten classes.

    Raises:
        DataError: If a file is missing, is not whole records, has a label beyond the classes, or is pickled.
    """
    return _load(request, _TEN)


def load_cifar100(request: Request) -> DataSet:
    """Read ``train.bin`` and ``test.bin``; the last tenth to train on is validation.

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
        # In the order in which an archive holds them.
        wanted = tree.in_storage_order(files[name] for name in (*version.train, version.test))
        records = {file.parts[-1]: _read(tree, file, names) for file in wanted}
    train = _split([records[name] for name in version.train], names, request.size)
    test = _split([records[version.test]], names, request.size)
    last = len(train) - len(train) // 10
    request.progress(len(train) + len(test), len(train) + len(test))
    return DataSet(
        spec=request.spec,
        shape=tuple(train.images.shape[1:]),
        classes=names[-1],
        train=train[:last],
        validation=train[last:] if last < len(train) else None,
        test=test,
        attributes=names[0] if len(names) > 1 else (),
    )


def _find(tree: Tree, version: _Version, spec: str) -> dict[str, File]:
    """The files by name."""
    known = {*version.train, version.test, *(name for name, _ in version.names)}
    found: dict[str, File] = {}
    for file in tree.files:
        name = file.parts[-1]
        if name in known and name in found:
            raise DataError(f"{spec}: {name} is here twice, in {found[name].path} and {file.path}")
        if name in known:
            found[name] = file
    missing = [name for name in (*version.train, version.test) if name not in found]
    if len(missing) == len(version.train) + 1 and any(f.parts[-1] in version.pickled for f in tree.files):
        raise DataError(
            f"{spec}: this is the python version of {version.title}, which is pickled and could run any code;\n"
            f"take the binary version, {version.archive}, from https://www.cs.toronto.edu/~kriz/cifar.html"
        )
    if missing:
        raise DataError(f"{spec}: no {', '.join(missing)} here; {version.title} comes as {version.archive}")
    return found


def _names(tree: Tree, file: File | None, count: int) -> tuple[str, ...]:
    """The names in a file, one a line; without it, those of CIFAR-10 or numbers."""
    if file is None:
        return CIFAR10 if count == len(CIFAR10) else tuple(map(str, range(count)))
    lines = tuple(tree.read(file).decode("utf-8", "replace").split())
    if len(lines) != count:
        raise DataError(f"{_shown(tree, file)}: {len(lines)} names, where there are {count} classes")
    return lines


def _read(tree: Tree, file: File, names: Sequence[tuple[str, ...]]) -> NDArray[np.uint8]:
    """The records of one file, ``(n, label bytes + 3072)``."""
    shown, record = _shown(tree, file), len(names) + PIXELS
    if not 0 < file.size <= MAX_BYTES or file.size % record:
        raise DataError(f"{shown}: {file.size} bytes are no whole number of records of {record}: is it complete?")
    try:
        content = tree.read(file)
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"{shown} cannot be read: {error}") from error
    if len(content) != file.size:
        raise DataError(f"{shown}: {len(content)} bytes, where {file.size} are announced: is it complete?")
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    for column, known in enumerate(names):
        if (high := records[:, column] >= len(known)).any():
            at = int(high.argmax())
            raise DataError(
                f"{shown}: record {at} has label {records[at, column]}; labels go from 0 to {len(known) - 1}"
            )
    return records


def _split(files: Sequence[NDArray[np.uint8]], names: Sequence[tuple[str, ...]], size: int | None) -> Split:
    heads = np.concatenate([records[:, : len(names)] for records in files]).astype(np.int64)
    images = np.concatenate([records[:, len(names) :] for records in files]).reshape(-1, 3, 32, 32)
    if size not in (None, 32):
        images = resize_all(images.reshape(-1, 32, 32), size).reshape(-1, 3, size, size)
    attributes = torch.from_numpy(heads[:, :1] == np.arange(len(names[0]))) if len(names) > 1 else None
    return Split(torch.from_numpy(images), torch.from_numpy(heads[:, -1].copy()), attributes)


def _shown(tree: Tree, file: File) -> str:
    return printable(str(tree.root / file.path))
