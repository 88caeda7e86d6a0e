"""``pack:``: a data set decoded, cropped and resized once, in one file that is read by index through memory mapping.

A pack is a safetensors file. Its images begin at a whole page; the parts follow one another.

| tensor | what it holds |
|---|---|
| ``images`` | ``(n, C, H, W)`` uint8 |
| ``labels``, if any | ``(n,)`` int64 |
| ``attributes``, if any | ``(n, A)`` bool |
| ``padding``, if any | up to seven bytes, so that labels are aligned |

Its metadata have one key, ``halikit.pack``, with a JSON object: version, source (without its directories), size, names
of classes and attributes, parts as [first row, last row + 1], what was skipped, and the SHA-256 of each tensor.
"""

from __future__ import annotations

import errno
import json
import math
import os
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halikit.data.dataset import DataError, DataSet, Split
from halikit.data.request import Request
from halikit.data.tree import printable
from halikit.errors import InputError, ResourceError

__all__ = ["Packing", "is_pack", "load_pack", "packing"]

KEY, VERSION = "halikit.pack", 1

_PAGE = 4096
_ROOM = 16384  # of a header beside the names in it: tensors, checksums, and some of what was skipped
_MAX_HEADER = 100 * 2**20
_BLOCK = 2**22
_ROWS = 1024  # images copied at a time
_DTYPES = {"images": "U8", "labels": "I64", "attributes": "BOOL", "padding": "U8"}
_RANKS = {"images": 4, "labels": 1, "attributes": 2, "padding": 1}
_BYTES = {"U8": 1, "I64": 8, "BOOL": 1}


def is_pack(path: Path) -> bool:
    """Whether a file begins as a pack does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(8 + 2 * _PAGE)
    return head[8:9] == b"{" and f'"{KEY}"'.encode() in head


def load_pack(request: Request) -> DataSet:
    """Open a pack; its images stay in the file, whatever its size, until they are asked for.

    The structure is always checked, the checksums if the request is strict, since they take reading the whole file.

    Returns:
        Images ``(C, H, W)`` uint8, at the size at which they were packed.

    Raises:
        DataError: If the file is no pack, is cut off or damaged, or has another size than is asked for.
    """
    path = request.path
    header = _read_header(path)
    meta, shape = header.meta, header.tensors["images"].shape
    if request.size is not None and shape[2:] != (request.size, request.size):
        raise DataError(
            f"{request.spec}: packed at {shape[3]}×{shape[2]}; for size={request.size} pack the originals again: "
            f"halikit data pack … --size {request.size}"
        )
    if request.strict:
        _verify(path, header, request)
    everything = Split(
        _mapped(path, header.tensors["images"]),
        _copied(path, header.tensors.get("labels")),
        _copied(path, header.tensors.get("attributes")),
        streamed=True,
    )
    classes, attributes = tuple(meta["classes"]), tuple(meta["attributes"])
    labels, flags = everything.labels, everything.attributes
    if (labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes)) or (
        flags is not None and flags.shape[1] != len(attributes)
    ):
        raise DataError(f"{path}: labels or attributes go beyond their names: the pack is damaged")
    rows = {tuple(bounds): everything[slice(*bounds)] for bounds in meta["parts"].values()}
    parts = {name: rows[tuple(bounds)] for name, bounds in meta["parts"].items()}
    request.progress(len(everything), len(everything))
    return DataSet(
        spec=request.spec,
        shape=tuple(shape[1:]),
        classes=classes,
        train=parts["train"],
        validation=parts.get("validation"),
        test=parts["test"],
        skipped=tuple((str(name), str(reason)) for name, reason in meta["skipped"]),
        attributes=attributes,
        origin=str(meta["source"]),
    )


class Packing:
    """A pack that is being written, under a temporary name beside its own; see :func:`packing`.

    Args:
        out: Where it will be.
    """

    def __init__(self, out: Path) -> None:
        self.path = out.with_name(f".{out.name}.part")
        # What a killed packing has left under this name is written over.
        self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        self._room = 0
        self._canvas: NDArray[np.uint8] | None = None
        mine = _lock(self._file.fileno()) and self.path.exists()
        if not mine or not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
            self._file.close()
            raise InputError(f"{out} is being packed by another process")

    def allocate(self, shape: tuple[int, ...], names: Sequence[str]) -> NDArray[np.uint8]:
        """Room in the file, as :attr:`~halikit.data.request.Request.canvas` gives it.

        Raises:
            OSError: If the disk is too full.
        """
        quoted = json.dumps(json.dumps(list(names)))  # as they appear in JSON within JSON
        self._room = -(-(_ROOM + len(quoted)) // _PAGE) * _PAGE
        length = self._room + math.prod(shape)
        if hasattr(os, "posix_fallocate"):  # or a disk that fills up would kill whoever writes to the mapping
            os.posix_fallocate(self._file.fileno(), 0, length)
        else:
            self._file.truncate(length)
        self._canvas = np.memmap(self._file, np.uint8, "r+", offset=self._room, shape=shape)
        return self._canvas

    def finish(self, data: DataSet, size: int | None) -> None:
        """Write what is not in the file yet, its header last.

        Raises:
            DataError: If the data are no images.
            OSError: If the disk is too full.
        """
        if len(data.shape) != 3:
            raise DataError(f"{data.spec}: a pack holds images, not vectors of {data.shape}")
        rows: dict[int, list[int]] = {}
        total = 0
        splits = {id(part): part for part in data.parts.values()}  # test may be validation
        for key, part in splits.items():
            rows[key] = [total, total + len(part)]
            total += len(part)
        canvas = self._canvas
        if canvas is None:
            canvas = self.allocate((total, *data.shape), (*data.classes, *data.attributes))
        for key, part in splits.items():
            _put(part.images, canvas[slice(*rows[key])])
        tensors: dict[str, NDArray[Any]] = {"images": canvas[:total]}
        tensors |= _joined(list(splits.values()), -tensors["images"].nbytes % 8)
        begin = self._room + tensors["images"].nbytes
        self._file.truncate(begin)
        self._file.seek(begin)
        for name in list(tensors)[1:]:
            self._file.write(tensors[name].tobytes())
        meta = {
            "version": VERSION,
            "source": data.origin or _portable(data.spec),
            "size": size,
            "classes": data.classes,
            "attributes": data.attributes,
            "parts": {name: rows[id(part)] for name, part in data.parts.items()},
            "skipped": [[printable(name), reason] for name, reason in data.skipped],
            "sha256": {name: _digest(tensor) for name, tensor in tensors.items()},
        }
        self._file.seek(0)
        self._file.write(_header(meta, tensors, self._room))
        self._file.flush()
        if isinstance(canvas, np.memmap):
            canvas.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file; what is mapped stays readable."""
        self._file.close()


@contextmanager
def packing(out: Path) -> Iterator[Packing]:
    """Write a pack: ``out`` appears when the context ends well, and nothing does if it does not.

    Raises:
        InputError: If ``out`` is there and no pack, or cannot be written to.
        ResourceError: If the disk is full.
    """
    if out.is_dir() or (out.exists() and not is_pack(out)):
        raise InputError(f"{out} is there and is no pack; give another name, or remove it first")
    if not out.parent.is_dir():
        raise InputError(f"cannot write {out}: there is no directory {out.parent}")
    try:
        file = Packing(out)
        try:
            yield file
            os.replace(file.path, out)
        except BaseException:
            file.path.unlink(missing_ok=True)
            raise
        finally:
            file.close()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(f"no space left to write {out}") from None
        raise InputError(f"cannot write {out}: {error.strerror or error}") from None


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies in a file."""

    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class _Header:
    """What a pack says of itself."""

    meta: Mapping[str, Any]
    tensors: Mapping[str, _Stored]


def _header(meta: dict[str, Any], tensors: Mapping[str, NDArray[Any]], room: int) -> bytes:
    """The header, filled up with spaces to ``room`` bytes; as much of what was skipped as it can take."""
    described: dict[str, Any] = {}
    at = 0
    for name, tensor in tensors.items():
        offsets = [at, at + tensor.nbytes]
        described[name] = {"dtype": _DTYPES[name], "shape": list(tensor.shape), "data_offsets": offsets}
        at += tensor.nbytes
    skipped = meta["skipped"]
    listed = len(skipped)
    while True:
        more = [["…", f"{len(skipped) - listed} more"]] if listed < len(skipped) else []
        meta = meta | {"skipped": skipped[:listed] + more}
        text = json.dumps({"__metadata__": {KEY: json.dumps(meta)}, **described}).encode()
        if len(text) <= room - 8:
            return struct.pack("<Q", room - 8) + text.ljust(room - 8)
        listed //= 2


def _read_header(path: Path) -> _Header:
    """Read and check the header, and that the file is as long as it says."""
    length = path.stat().st_size if path.is_file() else 0
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > min(_MAX_HEADER, length - 8):
                raise ValueError
            header = json.loads(file.read(size))
        meta = json.loads(header.pop("__metadata__")[KEY])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        raise DataError(f"{path} is no pack; make one with: halikit data pack SPEC {path.name}") from None
    if not isinstance(meta, dict) or meta.get("version") != VERSION:
        raise DataError(f"{path}: a pack of another version; this halikit reads version {VERSION}: pack it again")
    try:
        tensors = {name: _stored(name, entry, 8 + size) for name, entry in header.items()}
        _check(meta, tensors)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: the header is damaged ({type(error).__name__}: {error}); pack it again") from None
    end = max(tensor.end for tensor in tensors.values())
    if length != end:
        raise DataError(f"{path}: {length:,} bytes, where its header describes {end:,}: is it complete?")
    return _Header(meta, tensors)


def _stored(name: str, entry: Mapping[str, Any], start: int) -> _Stored:
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if entry["dtype"] != _DTYPES[name] or len(shape) != _RANKS[name]:
        raise ValueError(f"{name} is {entry['dtype']} {shape}")
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"{name} has sizes that are none")
    if math.prod(shape) * _BYTES[entry["dtype"]] != end - begin:
        raise ValueError(f"{name} does not fill its place")
    return _Stored(shape, start + begin, start + end)


def _check(meta: Mapping[str, Any], tensors: Mapping[str, _Stored]) -> None:
    n, *shape = tensors["images"].shape
    if n < 2 or shape[0] not in (1, 3) or min(shape) < 1:
        raise ValueError(f"images of shape {(n, *shape)}")
    if any(stored.shape[0] != n for name, stored in tensors.items() if name != "padding"):
        raise ValueError("images, labels and attributes differ in number")
    if not {"train", "test"} <= meta["parts"].keys() <= {"train", "validation", "test"}:
        raise ValueError(f"parts {sorted(meta['parts'])}")
    for name, (first, last) in meta["parts"].items():
        if not (isinstance(first, int) and isinstance(last, int) and 0 <= first < last <= n):
            raise ValueError(f"{name} is rows {first} to {last} of {n}")
    if not all(isinstance(name, str) for name in (meta["source"], *meta["classes"], *meta["attributes"])):
        raise TypeError("a name is no text")
    if meta["sha256"].keys() != tensors.keys() or not all(len(pair) == 2 for pair in meta["skipped"]):
        raise ValueError("checksums or reports are missing")


def _verify(path: Path, header: _Header, request: Request) -> None:
    total = sum(stored.end - stored.begin for stored in header.tensors.values())
    done = 0
    with path.open("rb") as file:
        for name, stored in header.tensors.items():
            digest = sha256()
            file.seek(stored.begin)
            for start in range(stored.begin, stored.end, _BLOCK):
                block = file.read(min(_BLOCK, stored.end - start))
                digest.update(block)
                done += len(block)
                request.progress(done * header.tensors["images"].shape[0] // total, header.tensors["images"].shape[0])
            if digest.hexdigest() != header.meta["sha256"][name]:
                raise DataError(f"{path}: wrong checksum of its {name}: the file has changed since it was packed")


def _mapped(path: Path, stored: _Stored) -> Tensor:
    """A tensor whose pages are read when they are needed."""
    array = np.memmap(path, np.uint8, "r", offset=stored.begin, shape=stored.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nobody may write to it is what we want
        return torch.from_numpy(array)


def _copied(path: Path, stored: _Stored | None) -> Tensor | None:
    """Labels or attributes."""
    if stored is None:
        return None
    values = np.fromfile(path, np.uint8, stored.end - stored.begin, offset=stored.begin)
    decoded = values.view("<i8").astype(np.int64) if len(stored.shape) == 1 else values != 0
    return torch.from_numpy(decoded.reshape(stored.shape))


def _put(images: Tensor, room: NDArray[np.uint8]) -> None:
    """Write images to where they belong, unless they were decoded right there."""
    if images.data_ptr() == room.ctypes.data:
        return
    for start in range(0, len(images), _ROWS):
        some = images[start : start + _ROWS]
        if some.dtype != torch.uint8:
            some = ((some + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        room[start : start + _ROWS] = some.numpy()


def _joined(parts: Sequence[Split], padding: int) -> dict[str, NDArray[Any]]:
    """Everything but the images, in the order in which it is stored."""
    labels = [part.labels.numpy() for part in parts if part.labels is not None]
    attributes = [part.attributes.numpy() for part in parts if part.attributes is not None]
    tensors: dict[str, NDArray[Any]] = {}
    if len(labels) == len(parts):
        if padding:
            tensors["padding"] = np.zeros(padding, np.uint8)
        tensors["labels"] = np.concatenate(labels).astype("<i8")
    if len(attributes) == len(parts):
        tensors["attributes"] = np.concatenate(attributes)
    return tensors


def _digest(tensor: NDArray[Any]) -> str:
    """SHA-256 of a tensor's bytes, some rows at a time."""
    digest = sha256()
    rows = max(1, _BLOCK // max(1, tensor[0].nbytes))
    for start in range(0, len(tensor), rows):
        digest.update(np.ascontiguousarray(tensor[start : start + rows]).data)
    return digest.hexdigest()


def _portable(spec: str) -> str:
    """A data spec without the directories of this machine."""
    prefix, colon, place = spec.partition(":")
    return f"{prefix}:{printable(Path(place).expanduser().resolve().name)}" if colon else spec


def _lock(descriptor: int) -> bool:
    """Whether nobody else holds this file; always on systems without such locks."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
