"""``mnist:``: MNIST and data sets in its format, from the official IDX files.

A file has two zero bytes, the code of the element type, the number of dimensions, each dimension as a big-endian 32-bit
integer, and the elements. Images are unsigned bytes in three dimensions, labels in one. Memory is allocated only for
elements that have been read, not for those that the header promises.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray

from halikit.data.dataset import DataError, DataSet, Request, Split, check_labels, divided
from halikit.data.image import resize_all
from halikit.data.tree import File, Tree, first_names, open_directory, open_tree, reading

__all__ = ["has_idx", "load_mnist"]

TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
MAX_ELEMENTS = 2**31
NUM_CLASSES, MAX_EMNIST_CLASSES = 10, 62

# train-images-idx3-ubyte, train-images.idx3-ubyte, emnist-letters-test-labels-idx1-ubyte, each with .gz or without
_NAME = re.compile(
    r"(?:(?P<set>.+)-)?(?P<part>train|t10k|test)-(?P<kind>images|labels)[-.]idx[13]-ubyte(?:\.gz)?", re.IGNORECASE
)
_SUFFIXES = ("", ".gz", ".idx1-ubyte", ".idx3-ubyte")
_FOLDERS = (".", "raw", "MNIST/raw")  # where programs that download MNIST put the files
_DIMENSIONS = {"images": 3, "labels": 1}
_FILES = {(part, kind) for part in ("train", "test") for kind in _DIMENSIONS}
_BLOCK = 2**20

_Array = NDArray[np.uint8]


def has_idx(path: Path) -> bool:
    """Whether a directory, or an archive among its first 100 files, has IDX files with MNIST's names."""
    seen = [file.name for file in _open(path).files] if path.is_dir() else first_names(path)
    return any(map(_NAME.fullmatch, seen))


def load_mnist(request: Request) -> DataSet:
    """Read the four IDX files; the last tenth of the training part, in file order, is validation.

    EMNIST's names, such as ``emnist-letters-train-images-idx3-ubyte``, are accepted too. Images are taken as stored,
    which in EMNIST is transposed.

    Returns:
        Images ``(1, H, W)`` uint8; classes "0" … "9", in EMNIST up to the highest label of the training part.

    Raises:
        DataError: If a file is missing or does not agree with its name and header, or images and labels do not agree.
    """
    with _open(request.path) as tree:
        files = _find(tree, request.spec)
        paths = {key: tree.full_path(file) for key, file in files.items()}
        arrays = {key: _read(tree, file, _DIMENSIONS[key[1]]) for key, file in files.items()}
    num_classes = NUM_CLASSES
    if files["train", "labels"].name.startswith("emnist-"):
        num_classes = min(int(arrays["train", "labels"].max()) + 1, MAX_EMNIST_CLASSES)
    size, test_size = (_by(arrays[part, "images"].shape[1:]) for part in ("train", "test"))
    if size != test_size:
        raise DataError(f"{request.spec}: training images of {size}, but test images of {test_size}")
    splits = []
    for part in ("train", "test"):
        images, labels = arrays[part, "images"], arrays[part, "labels"]
        if len(images) != len(labels):
            raise DataError(
                f"{paths[part, 'images']} has {len(images)} images and {paths[part, 'labels']} {len(labels)} labels: "
                "the files belong to different data sets"
            )
        check_labels(labels, num_classes - 1, paths[part, "labels"])
        images = resize_all(images, request.size)
        splits.append(Split(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))))
    train, test = splits
    request.progress(len(train) + len(test), len(train) + len(test))
    classes = tuple(map(str, range(num_classes)))
    return divided(request.spec, train, test, num_validation=len(train) // 10, classes=classes)


def _open(path: Path) -> Tree:
    """List the IDX files of an archive, or of the first usual folder that has any."""
    if not path.is_dir():
        return open_tree(path, _SUFFIXES)
    for folder in _FOLDERS:
        tree = open_directory(path / folder, _SUFFIXES, deep=False)
        if any(_NAME.fullmatch(file.path) for file in tree.files):
            return tree
    return open_directory(path, (), deep=False)


def _find(tree: Tree, spec: str) -> dict[tuple[str, str], File]:
    """The four files by ("train" or "test", "images" or "labels"), uncompressed if both forms exist."""
    found: dict[tuple[str, str], File] = {}
    data_sets: set[str] = set()
    for file in sorted(tree.files, key=lambda file: file.name.endswith(".gz"), reverse=True):
        if match := _NAME.fullmatch(file.name):
            data_sets.add(file.path.removesuffix(file.name) + (match["set"] or ""))
            found["train" if match["part"].lower() == "train" else "test", match["kind"].lower()] = file
    if len(data_sets) > 1:
        raise DataError(f"{spec}: IDX files of {len(data_sets)} data sets; put each into its own directory")
    official = {"train": "train", "test": "t10k"}
    missing = sorted(f"{official[part]}-{kind}-idx{_DIMENSIONS[kind]}-ubyte" for part, kind in _FILES - found.keys())
    if missing:
        what = "an IDX file is missing" if found else "no IDX files here"
        raise DataError(f"{spec}: {what}; looked for {', '.join(missing)}, each with .gz or without")
    return found


def _read(tree: Tree, file: File, dimensions: int) -> _Array:
    """The array of unsigned bytes in one IDX file.

    Raises:
        DataError: If the file is anything else, or is shorter or longer than its header says.
    """
    path = tree.full_path(file)
    with reading(path), tree.open(file) as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        return _parse(gzip.GzipFile(fileobj=raw) if compressed else raw, path, dimensions)


def _parse(stream: IO[bytes] | gzip.GzipFile, path: str, dimensions: int) -> _Array:
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in TYPES:
        start = head.hex(" ") or "nothing"
        raise DataError(f"{path} is not an IDX file: it starts with {start}, not with 00 00 08 0{dimensions}")
    if head[2] != 0x08:
        raise DataError(f"{path}: elements of type {TYPES[head[2]]}; images and labels are unsigned bytes (uint8)")
    if head[3] != dimensions:
        raise DataError(f"{path}: {head[3]} dimensions instead of {dimensions}; are images and labels exchanged?")
    sizes = stream.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise DataError(f"{path}: cut off within its header")
    shape = struct.unpack(f">{dimensions}I", sizes)
    count = math.prod(shape)
    if count == 0:
        raise DataError(f"{path}: the header says {_by(shape)} elements; the file is empty")
    if count > MAX_ELEMENTS:
        raise DataError(f"{path}: the header says {_by(shape)}, more than the {MAX_ELEMENTS} bytes that are allowed")
    content = bytearray()
    while len(content) <= count and (block := stream.read(min(_BLOCK, count + 1 - len(content)))):
        content += block
    if len(content) != count:
        found = f"only {len(content)}" if len(content) < count else "more"
        raise DataError(f"{path}: the header says {_by(shape)}, {count} bytes, but {found} follow")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _by(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape))
