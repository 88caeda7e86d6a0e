"""``mnist:``: MNIST and data sets in its format, from the official IDX files.

A file has two zero bytes, the code of the element type, the number of dimensions, each dimension as a big-endian 32-bit
integer, and the elements. Images are unsigned bytes in three dimensions, labels in one. Memory is allocated only for
elements that have been read, not for those that the header promises.

| what is there | what happens to it |
|---|---|
| the four files, gzipped or not, in any folder or archive | read; uncompressed if both forms exist |
| a file in a folder of its own name, as Kaggle has it | as if it lay beside that folder |
| the same file twice | the one that lies higher, if they have the same length; otherwise an error |
| several data sets: MNIST/raw and FashionMNIST/raw, EMNIST's six | the one right in the folder; otherwise an error |
| ``mnist:PLACE/SET``, where SET is no folder: ``mnist:EMNIST/raw/letters`` | the set of that name |
| labels | the classes are those that occur |

EMNIST's images are transposed, as they are stored: they lie on their side, mirrored.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray

from halikit.data.dataset import DataError, DataSet, Request, Split, check_labels, divided, with_occurring_classes
from halikit.data.image import resize_all
from halikit.data.tree import File, Tree, first_names, open_tree, printable, reading

__all__ = ["has_idx", "load_mnist"]

TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
MAX_ELEMENTS = 2**31
NUM_CLASSES, MAX_EMNIST_CLASSES = 10, 62

# train-images-idx3-ubyte, train-images.idx3-ubyte, emnist-letters-test-labels-idx1-ubyte, each with .gz or without
_NAME = re.compile(
    r"(?:(?P<set>.+)-)?(?P<part>train|t10k|test)-(?P<kind>images|labels)[-.]idx[13]-ubyte(?:\.gz)?", re.IGNORECASE
)
_SUFFIXES = ("", ".gz", ".idx1-ubyte", ".idx3-ubyte")
_FOLDERS = ("raw", "*/raw")  # where programs that download MNIST and others put the files
_FIRST = 100  # folders that are looked into to recognise a data set
_DIMENSIONS = {"images": 3, "labels": 1}
_FILES = {(part, kind) for part in ("train", "test") for kind in _DIMENSIONS}
_BLOCK = 2**20

_Array = NDArray[np.uint8]


def has_idx(path: Path) -> bool:
    """Whether a directory, or an archive among its first 100 files, has IDX files with MNIST's names."""
    seen = first_names(path)
    if path.is_dir():
        folders = (folder for pattern in _FOLDERS for folder in path.glob(pattern) if folder.is_dir())
        seen = seen.union(*(first_names(folder) for folder in islice(folders, _FIRST)))
    return any(map(_NAME.fullmatch, seen))


def load_mnist(request: Request) -> DataSet:
    """Read the four IDX files; the last tenth of the training part, in file order, is validation.

    EMNIST's names, such as ``emnist-letters-train-images-idx3-ubyte``, are accepted too.

    Returns:
        Images ``(1, H, W)`` uint8; the classes are the labels that occur, by number.

    Raises:
        DataError: If a file is missing or does not agree with its name and header, or images and labels do not agree.
    """
    place, chosen = _place(request)
    with open_tree(place, _SUFFIXES) as tree:
        files = _find(tree, chosen, request.spec)
        paths = {key: tree.full_path(file) for key, file in files.items()}
        arrays = {key: _read(tree, file, _DIMENSIONS[key[1]]) for key, file in files.items()}
    num_classes = NUM_CLASSES
    if files["train", "labels"].name.lower().startswith("emnist-"):
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
    return with_occurring_classes(divided(request.spec, train, test, num_validation=len(train) // 10, classes=classes))


def _place(request: Request) -> tuple[Path, str]:
    """The folder or archive, and what follows it in the spec: the name of one data set there, or nothing."""
    whole = Path(request.spec.partition(":")[2]).expanduser()
    for place in whole.parents:
        if not whole.exists() and place.name and place.exists():
            with_sets = any(_NAME.fullmatch(name) for name in first_names(place)) or has_idx(place)
            if with_sets:
                return place, whole.relative_to(place).as_posix()
            break
    return request.path, ""


def _find(tree: Tree, chosen: str, spec: str) -> dict[tuple[str, str], File]:
    """The four files by ("train" or "test", "images" or "labels") of the only data set, or of the chosen one."""
    sets, at_root = _data_sets(tree)
    names = _chosen(sets, chosen) if chosen else _all_or_one_at_root(sets, at_root)
    if len(names) > 1 or (chosen and not names):
        what = "no such data set" if chosen and not names else f"IDX files of {len(names)} data sets"
        base = spec[: len(spec) - len(chosen)].rstrip("/") if chosen else spec
        some = ", ".join(f"{base}/{printable(name)}".rstrip("/") for name in (names or sorted(sets))[:8])
        raise DataError(f"{spec}: {what}; choose one: {some}")
    found: dict[tuple[str, str], File] = {}
    for file in sorted(sets[names[0]] if names else (), key=_preference):
        match = _NAME.fullmatch(file.name)
        assert match is not None
        part = ("train" if match["part"].lower() == "train" else "test", match["kind"].lower())
        first = found.setdefault(part, file)
        if first.nbytes != file.nbytes and _is_packed(first) == _is_packed(file):
            raise DataError(f"{spec}: {printable(first.path)} and {printable(file.path)} differ; remove one of them")
    official = {"train": "train", "test": "t10k"}
    missing = sorted(f"{official[part]}-{kind}-idx{_DIMENSIONS[kind]}-ubyte" for part, kind in _FILES - found.keys())
    if missing:
        what = "an IDX file is missing" if found else "no IDX files here"
        raise DataError(f"{spec}: {what}; looked for {', '.join(missing)}, each with .gz or without")
    return found


def _data_sets(tree: Tree) -> tuple[dict[str, list[File]], set[str]]:
    """The files of each data set by its folders and name, and the data sets that lie in no folder."""
    sets: dict[str, list[File]] = {}
    at_root: set[str] = set()
    for file in tree.files:
        if match := _NAME.fullmatch(file.name):
            folders = list(file.steps[:-1])
            if folders and _plain(folders[-1]) == _plain(file.name):
                folders.pop()
            name = (match["set"] or "").lower().removeprefix("emnist-")
            key = "/".join([*folders, name] if name else folders)
            sets.setdefault(key, []).append(file)
            if not folders:
                at_root.add(key)
    return sets, at_root


def _all_or_one_at_root(sets: Mapping[str, Sequence[File]], at_root: Collection[str]) -> list[str]:
    """The data set right in the folder if it is the only one there and may be whole; otherwise the names of all."""
    return list(at_root) if len(at_root) == 1 and len(sets[next(iter(at_root))]) >= len(_FILES) else sorted(sets)


def _chosen(sets: Mapping[str, Sequence[File]], chosen: str) -> list[str]:
    """The names of the data sets that a spec may mean."""
    wanted = chosen.lower().replace("emnist-", "")
    exact = [name for name in sets if name.lower() == wanted]
    within = [
        name for name in sets if f"/{name}/".lower().endswith(f"/{wanted}/") or f"{name}/".startswith(f"{chosen}/")
    ]
    return exact or sorted(within)


def _plain(name: str) -> str:
    """The name of a file without .gz, and with one form of the dot or hyphen before idx."""
    return name.lower().removesuffix(".gz").replace(".idx", "-idx")


def _is_packed(file: File) -> bool:
    return file.name.lower().endswith(".gz")


def _preference(file: File) -> tuple[bool, int, str]:
    """Uncompressed files first, then those that lie higher."""
    return _is_packed(file), len(file.steps), file.path


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
