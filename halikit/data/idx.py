"""``mnist:``: MNIST and its look-alikes from the official IDX files.

A file is two zero bytes, the code of the element type, the number of dimensions, each dimension as a big-endian
32-bit integer, and the elements. Images are unsigned bytes in three dimensions, labels in one. Nothing that a header
claims is allocated before the length of the file bears it out.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray

from halikit.data.dataset import DataError, DataSet, Split
from halikit.data.image import resize_all
from halikit.data.request import Request
from halikit.data.tree import DAMAGE, Directory, File, Tree, names, open_tree, printable

__all__ = ["has_idx", "load_mnist"]

TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
MAX_ELEMENTS = 2**31
CLASSES, EMNIST_CLASSES = 10, 62  # of MNIST and its look-alikes; of EMNIST at most

# train-images-idx3-ubyte, train-images.idx3-ubyte, emnist-letters-test-labels-idx1-ubyte, each with .gz or without
_NAME = re.compile(
    r"(?:(?P<set>.+)-)?(?P<part>train|t10k|test)-(?P<kind>images|labels)[-.]idx[13]-ubyte(?:\.gz)?", re.IGNORECASE
)
_FOLDERS = (".", "raw", "MNIST/raw")  # where programs that download MNIST put it
_RANK = {"images": 3, "labels": 1}
_FILES = {(part, kind) for part in ("train", "test") for kind in _RANK}
_DEFLATE = 1032  # no deflate stream expands more
_BLOCK = 2**20


def has_idx(path: Path) -> bool:
    """Whether a directory or archive holds IDX files under MNIST's names (of an archive, among its first hundred)."""
    if path.is_dir():
        return bool(_open(path).files)
    return any(_NAME.fullmatch(name.rpartition("/")[2]) for name in islice(names(path), 100))


def load_mnist(request: Request) -> DataSet:
    """Read the four IDX files; of the training part the last tenth in file order is validation.

    EMNIST's names, such as ``emnist-letters-train-images-idx3-ubyte``, are known too; images are taken as stored,
    which in EMNIST is transposed.

    Returns:
        Images ``(1, H, W)`` uint8; classes "0" … "9", in EMNIST up to the highest label of the training part.

    Raises:
        DataError: If a file is missing or is not what its name and header say, or images and labels do not agree.
    """
    with _open(request.path) as tree:
        files = _find(tree, request.spec)
        name = {key: printable(str(tree.root / file.path)) for key, file in files.items()}
        arrays = {key: _read(tree, file, name[key], rank=_RANK[key[1]]) for key, file in files.items()}
    emnist = files["train", "labels"].parts[-1].startswith("emnist-")
    classes = min(int(arrays["train", "labels"].max()) + 1, EMNIST_CLASSES) if emnist else CLASSES
    splits: dict[str, Split] = {}
    for part in ("train", "test"):
        images, labels = arrays[part, "images"], arrays[part, "labels"]
        if len(images) != len(labels):
            raise DataError(
                f"{name[part, 'images']} has {len(images)} images and {name[part, 'labels']} {len(labels)} labels: "
                "they are not of one set"
            )
        if labels.max() >= classes:
            at = int((labels >= classes).argmax())
            raise DataError(f"{name[part, 'labels']}: label {at} is {labels[at]}; labels go from 0 to {classes - 1}")
        if images.shape[1:] != arrays["train", "images"].shape[1:]:
            raise DataError(
                f"{name[part, 'images']}: images of {_by(images.shape[1:])}, but those to train on are "
                f"{_by(arrays['train', 'images'].shape[1:])}: they are not of one set"
            )
        if request.size is not None:
            images = resize_all(images, request.size)
        splits[part] = Split(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64)))
    train, test = splits["train"], splits["test"]
    last = len(train) - len(train) // 10
    request.progress(len(train) + len(test), len(train) + len(test))
    return DataSet(
        spec=request.spec,
        shape=tuple(train.images.shape[1:]),
        classes=tuple(map(str, range(classes))),
        train=train[:last],
        validation=train[last:] if last < len(train) else None,
        test=test,
    )


def _open(path: Path) -> Tree:
    """List the IDX files of an archive, or of the first of the usual folders that has any."""
    if not path.is_dir():
        return open_tree(path, _is_idx)
    for folder in _FOLDERS:
        tree = Directory(path / folder, _is_idx, deep=False)
        if any(_NAME.fullmatch(file.path) for file in tree.files):
            return tree
    return Directory(path, lambda suffix: False, deep=False)


def _is_idx(suffix: str) -> bool:
    return suffix in ("", ".gz", ".idx1-ubyte", ".idx3-ubyte")


def _find(tree: Tree, spec: str) -> dict[tuple[str, str], File]:
    """The four files by ("train" or "test", "images" or "labels"); an unpacked one before its packed copy."""
    found: dict[tuple[str, str], File] = {}
    sets: set[str] = set()
    for file in sorted(tree.files, key=lambda file: file.suffix == ".gz", reverse=True):
        if match := _NAME.fullmatch(file.parts[-1]):
            sets.add("/".join(file.parts[:-1]) + (match["set"] or ""))
            found["train" if match["part"].lower() == "train" else "test", match["kind"].lower()] = file
    if len(sets) > 1:
        raise DataError(f"{spec}: IDX files of {len(sets)} data sets; give each a place of its own")
    own = {"train": "train", "test": "t10k"}
    missing = sorted(f"{own[part]}-{kind}-idx{_RANK[kind]}-ubyte" for part, kind in _FILES - found.keys())
    if missing:
        what = "an IDX file is missing" if found else "no IDX files here"
        raise DataError(f"{spec}: {what}; looked for {', '.join(missing)}, each with .gz or without")
    return found


def _read(tree: Tree, file: File, name: str, rank: int) -> NDArray[np.uint8]:
    """The array of unsigned bytes in one IDX file, with ``rank`` dimensions.

    Raises:
        DataError: If the file is anything else, or is shorter or longer than its header says.
    """
    try:
        with tree.open(file) as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not packed:
                return _parse(raw, file.size, True, name, rank)
            with gzip.GzipFile(fileobj=raw) as stream:
                return _parse(stream, file.size * _DEFLATE, False, name, rank)
    except DataError:
        raise
    except EOFError:
        raise DataError(f"{name}: cut off within its compressed data: is it complete?") from None
    except DAMAGE as error:
        raise DataError(f"{name} cannot be read: {error}") from error


def _parse(stream: IO[bytes] | gzip.GzipFile, room: int, exact: bool, name: str, rank: int) -> NDArray[np.uint8]:
    """Header and elements from ``stream``, which holds ``room`` bytes, or that many at most unless ``exact``."""
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in TYPES:
        raise DataError(f"{name} is no IDX file: it starts with {head.hex(' ') or 'nothing'}, not 00 00 08 0{rank}")
    if head[2] != 0x08:
        raise DataError(f"{name}: elements of type {TYPES[head[2]]}; images and labels are unsigned bytes (uint8)")
    if head[3] != rank:
        raise DataError(f"{name}: {head[3]} dimensions; this file has {rank} (are images and labels exchanged?)")
    sizes = stream.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise DataError(f"{name}: cut off within its header")
    shape = struct.unpack(f">{rank}I", sizes)
    count, room = math.prod(shape), room - 4 - 4 * rank
    if count == 0:
        raise DataError(f"{name}: {_by(shape)} elements: nothing in it")
    if count > MAX_ELEMENTS:
        raise DataError(f"{name}: the header says {_by(shape)}, more than such a file may hold ({MAX_ELEMENTS} bytes)")
    says = f"{name}: the header says {_by(shape)}, {count} bytes, but"
    if room < count or (exact and room > count):
        raise DataError(f"{says} {'' if exact else 'at most '}{max(room, 0)} follow")
    content = bytearray()
    while len(content) <= count and (block := stream.read(min(_BLOCK, count + 1 - len(content)))):
        content += block
    if len(content) != count:
        raise DataError(f"{says} {f'only {len(content)}' if len(content) < count else 'more'} follow")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _by(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape))
