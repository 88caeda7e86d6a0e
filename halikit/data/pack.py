"""``pack:``: a data set that is decoded, cropped and resized once, in one file that is read by index.

A pack is a safetensors file. The images begin at a multiple of 4,096 bytes, so that they can be mapped into memory; the
parts of the data set follow one another.

| tensor | what it holds |
|---|---|
| ``images`` | ``(n, C, H, W)`` uint8 |
| ``labels``, if any | ``(n,)`` int64 |
| ``attributes``, if any | ``(n, A)`` bool |
| ``padding``, if any | up to seven bytes, so that labels are aligned |

The metadata have one key, ``halikit.pack``, with a JSON object: version, source (without its directories), size, names
of classes and attributes, parts as [first row, last row + 1], skipped files, notes of the reader, and the SHA-256 of
each tensor.
"""

from __future__ import annotations

import errno
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halikit.data.dataset import DataError, DataSet, Request, Split, Store, check_labels, named
from halikit.data.tree import printable
from halikit.errors import InputError, ResourceError
from halikit.utils.lock import locked
from halikit.utils.safetensors_stream import StoredTensor, make_header, read_header

__all__ = ["Packing", "is_pack", "load_pack", "packing"]

KEY, VERSION = "halikit.pack", 1

_PAGE = 4096
_HEADER_BYTES = 16384  # reserved for the header, besides the names of classes and attributes
_REPORT_BYTES = 8192  # at most so much of the header lists skipped files
_MAX_NOTES = 8  # of at most a few hundred bytes each
_BLOCK_BYTES = 2**22  # hashed at a time
_ROWS = 1024  # images copied at a time
_TENSORS = {"images": (torch.uint8, 4), "labels": (torch.int64, 1), "attributes": (torch.bool, 2)}
_TENSORS["padding"] = (torch.uint8, 1)  # each with its type and its number of dimensions


def is_pack(path: Path) -> bool:
    """Whether a file begins as a pack does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(2 * _PAGE)
    return head[8:9] == b"{" and f'"{KEY}"'.encode() in head


def load_pack(request: Request) -> DataSet:
    """Open a pack. Its images stay in the file; each batch is read when it is needed.

    The structure is always checked. The checksums are checked if the request is strict, because that reads the whole
    file.

    Returns:
        Images ``(C, H, W)`` uint8, in the size in which they were packed.

    Raises:
        DataError: If the file is not a pack, is cut off or damaged, or has another size than the requested one.
    """
    path = request.path
    meta, tensors = _read_header(path)
    width, height = reversed(tensors["images"].shape[2:])
    if request.size is not None and (width, height) != (request.size, request.size):
        raise DataError(
            f"{request.spec}: packed at {width}×{height}; for size={request.size} pack the originals again: "
            f"halikit data pack … --size {request.size}"
        )
    packed = tensors["images"].shape[1]
    if request.channels not in (None, packed):
        raise DataError(f"{request.spec}: packed with {packed} channels, not channels={request.channels}")
    arrays = {name: _open_array(path, stored) for name, stored in tensors.items()}
    if request.strict:
        _verify(arrays, meta["sha256"], request)
    everything = _as_split(arrays)
    if "labels" in arrays:
        check_labels(arrays["labels"], len(meta["classes"]) - 1, str(path))
    # Equal rows give the same object: the validation part may also be the test part.
    splits = {tuple(rows): everything[slice(*rows)] for rows in meta["parts"].values()}
    parts = {name: splits[tuple(rows)] for name, rows in meta["parts"].items()}
    request.progress(len(everything), len(everything))
    return DataSet(
        spec=request.spec,
        shape=tuple(everything.images.shape[1:]),
        classes=tuple(meta["classes"]),
        train=parts["train"],
        validation=parts.get("validation"),
        test=parts["test"],
        skipped=tuple((str(name), str(reason)) for name, reason in meta["skipped"]),
        attributes=tuple(meta["attributes"]),
        origin=str(meta["source"]),
        notes=tuple(map(str, meta.get("notes", ()))),  # older packs have none
    )


class Packing:
    """A pack that is being written under a temporary name; see :func:`packing`.

    Args:
        out: Path of the complete pack.

    Raises:
        OSError: If the temporary file cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self.path = out.with_name(f".{out.name}.part")
        # The temporary file of a killed process is overwritten.
        self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        self._canvas: NDArray[np.uint8] | None = None
        self._header_length = 0

    def allocate(self, shape: tuple[int, ...], names: Sequence[str]) -> NDArray[np.uint8]:
        """Reserve space in the file for images.

        Args:
            shape: ``(n, C, H, W)``.
            names: Names of classes and attributes, for which the header has to have space.

        Returns:
            uint8 of that shape, mapped to the file.

        Raises:
            OSError: If the disk is full.
        """
        header_bytes = _HEADER_BYTES + _json_length(list(names))
        self._header_length = math.ceil(header_bytes / _PAGE) * _PAGE
        length = self._header_length + math.prod(shape)
        # Without reserved blocks, a full disk would kill the process that writes to the mapping.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), 0, length)
        else:
            self._file.truncate(length)
        self._canvas = np.memmap(self._file, np.uint8, "r+", offset=self._header_length, shape=shape)
        return self._canvas

    def finish(self, data: DataSet, size: int | None) -> None:
        """Write everything that the file does not have yet, and the header last.

        Args:
            data: The data set. Images that lie in the array from :meth:`allocate` are not copied.
            size: The requested size, for the metadata.

        Raises:
            DataError: If the data are not images.
            OSError: If the disk is full.
        """
        if len(data.shape) != 3:
            raise DataError(
                f"{data.spec}: a pack holds images, but these are {named(data.shape)} of shape {data.shape}"
            )
        rows: dict[int, list[int]] = {}
        total = 0
        for part in data.distinct_parts:
            rows[id(part)] = [total, total + len(part)]
            total += len(part)
        canvas = self._canvas
        if canvas is None:
            canvas = self.allocate((total, *data.shape), (*data.classes, *data.attributes))
        for part in data.distinct_parts:
            _copy_images(part.images, canvas[slice(*rows[id(part)])])
        arrays = {"images": canvas[:total], **_labels_and_attributes(data.distinct_parts, -canvas[:total].nbytes % 8)}
        meta = {
            "version": VERSION,
            "source": data.origin or _without_directories(data.spec),
            "size": size,
            "classes": data.classes,
            "attributes": data.attributes,
            "parts": {name: rows[id(part)] for name, part in data.parts.items()},
            "skipped": _shortened([[printable(name), reason] for name, reason in data.skipped]),
            "notes": data.notes[:_MAX_NOTES],
            "sha256": {name: _digest(array) for name, array in arrays.items()},
        }
        self._write(arrays, meta)

    def _write(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        described = {name: (_TENSORS[name][0], array.shape) for name, array in arrays.items()}
        header, tensors = make_header(described, KEY, meta, length=self._header_length)
        self._file.truncate(tensors["images"].end)
        for name, stored in tensors.items():
            if name != "images":
                self._file.seek(stored.offset)
                self._file.write(arrays[name].tobytes())
        self._file.seek(0)
        self._file.write(header)
        self._file.flush()
        if isinstance(self._canvas, np.memmap):
            self._canvas.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file. The mapped images stay readable."""
        self._file.close()


@contextmanager
def packing(out: Path) -> Iterator[Packing]:
    """Write a pack. ``out`` appears when the context ends without an error; after an error nothing is left.

    Raises:
        InputError: If ``out`` exists and is not a pack, cannot be written, or is being written by another process.
        ResourceError: If the disk is full.
    """
    if out.is_dir() or (out.exists() and not is_pack(out)):
        raise InputError(f"{out} exists and is not a pack; give another name, or remove it first")
    if not out.parent.is_dir():
        raise InputError(f"cannot write {out}: there is no directory {out.parent}")
    lock = locked(out.with_name(f".{out.name}.lock"), f"{out} is being packed by another process")
    try:
        with lock, closing(Packing(out)) as file:
            try:
                yield file
                os.replace(file.path, out)
            except BaseException:
                file.path.unlink(missing_ok=True)
                raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(f"no space left to write {out}") from None
        raise InputError(f"cannot write {out}: {error.strerror or error}") from None


def _read_header(path: Path) -> tuple[Mapping[str, Any], Mapping[str, StoredTensor]]:
    """The checked metadata and tensors of a pack that is as long as its header says."""
    if not is_pack(path):
        raise DataError(f"{path} is not a pack; make one with: halikit data pack SPEC {path.name}")
    try:
        meta, tensors = read_header(path, KEY)
        if not isinstance(meta, dict) or meta.get("version") != VERSION:
            raise DataError(f"{path}: a pack of another version; this halikit reads version {VERSION}: pack it again")
        if not _is_consistent(meta, tensors):
            raise ValueError("its entries do not agree")
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: the header is damaged ({printable(str(error)[:200])}); pack it again") from None
    length, end = path.stat().st_size, max(stored.end for stored in tensors.values())
    if length != end:
        raise DataError(f"{path}: {length:,} bytes, but its header describes {end:,}; is the file complete?")
    return meta, tensors


def _is_consistent(meta: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether the entries of a header agree. Entries that are missing or have a wrong type raise an error."""
    n, *shape = tensors["images"].shape
    parts, names = meta["parts"], (meta["source"], *meta["classes"], *meta["attributes"])
    return (
        all((stored.dtype, len(stored.shape)) == _TENSORS[name] for name, stored in tensors.items())
        and all(stored.shape[0] == n for name, stored in tensors.items() if name != "padding")
        and (n >= 2 and shape[0] <= 16 and min(shape) >= 1)
        and ("attributes" not in tensors or tensors["attributes"].shape[1] == len(meta["attributes"]))
        and {"train", "test"} <= parts.keys() <= {"train", "validation", "test"}
        and all(isinstance(row, int) for rows in parts.values() for row in rows)
        and all(0 <= first < last <= n for first, last in parts.values())
        and all(isinstance(name, str) for name in names)
        and meta["sha256"].keys() == tensors.keys()
        and all(len(pair) == 2 for pair in meta["skipped"])
    )


def _open_array(path: Path, stored: StoredTensor) -> NDArray[Any]:
    """A tensor as it is stored: images mapped into memory, everything else read."""
    if len(stored.shape) == 4:
        return np.memmap(path, np.uint8, "r", offset=stored.offset, shape=stored.shape)
    dtype = "<i8" if stored.dtype == torch.int64 else "u1"
    return np.fromfile(path, dtype, math.prod(stored.shape), offset=stored.offset).reshape(stored.shape)


def _as_split(arrays: Mapping[str, NDArray[Any]]) -> Split:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the images are read-only, which is intended
        images = torch.from_numpy(arrays["images"])
    labels, attributes = arrays.get("labels"), arrays.get("attributes")
    return Split(
        images,
        None if labels is None else torch.from_numpy(labels.astype(np.int64)),
        None if attributes is None else torch.from_numpy(attributes != 0),
        streamed=True,
    )


def _verify(arrays: Mapping[str, NDArray[Any]], checksums: Mapping[str, str], request: Request) -> None:
    n, total = len(arrays["images"]), sum(array.nbytes for array in arrays.values())
    done = 0
    for name, array in arrays.items():
        digest = sha256()
        for block in _blocks(array):
            digest.update(block)
            done += block.nbytes
            request.progress(done * n // total, n)
        if digest.hexdigest() != checksums[name]:
            raise DataError(f"{request.path}: wrong checksum of its {name}: the file has changed since it was packed")


def _digest(array: NDArray[Any]) -> str:
    digest = sha256()
    for block in _blocks(array):
        digest.update(block)
    return digest.hexdigest()


def _blocks(array: NDArray[Any]) -> Iterator[memoryview]:
    """The bytes of an array, some rows at a time."""
    rows = max(1, _BLOCK_BYTES // max(1, array[0].nbytes))
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows]).data


def _copy_images(images: Tensor | Store, rows: NDArray[np.uint8]) -> None:
    """Write images to their rows of the pack, unless they were decoded into these rows."""
    if isinstance(images, Tensor) and images.data_ptr() == rows.ctypes.data:
        return
    for start in range(0, len(images), _ROWS):
        some = images[start : start + _ROWS]
        if some.dtype != torch.uint8:
            some = ((some + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        rows[start : start + _ROWS] = some.numpy()


def _labels_and_attributes(parts: Sequence[Split], padding: int) -> dict[str, NDArray[Any]]:
    """The tensors that follow the images, in the order in which they are stored."""
    labels = [part.labels.numpy() for part in parts if part.labels is not None]
    attributes = [part.attributes.numpy() for part in parts if part.attributes is not None]
    arrays: dict[str, NDArray[Any]] = {}
    if len(labels) == len(parts):
        if padding:
            arrays["padding"] = np.zeros(padding, np.uint8)
        arrays["labels"] = np.concatenate(labels).astype("<i8")
    if len(attributes) == len(parts):
        arrays["attributes"] = np.concatenate(attributes)
    return arrays


def _shortened(skipped: list[list[str]]) -> list[list[str]]:
    """The first of the skipped files, as many as the header has space for, and the number of the others."""
    length = 0
    for number, report in enumerate(skipped):
        length += _json_length(report)
        if length > _REPORT_BYTES:
            return [*skipped[:number], ["…", f"{len(skipped) - number} more"]]
    return skipped


def _json_length(value: list[str]) -> int:
    """Bytes that a list takes in the header, where it is JSON within JSON."""
    return len(json.dumps(json.dumps(value)))


def _without_directories(spec: str) -> str:
    """A data spec that does not reveal the directories of this machine."""
    prefix, colon, place = spec.partition(":")
    return f"{prefix}:{printable(Path(place).expanduser().resolve().name)}" if colon else spec
