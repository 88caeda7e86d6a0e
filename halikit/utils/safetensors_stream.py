"""Headers of safetensors files that are too large to be written or read as a whole.

The safetensors library takes all tensors from memory. A larger file is written in pieces: first the header from
:func:`make_header`, then the bytes of each tensor, in any order, at the offset that the header gives to it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["StoredTensor", "make_header", "read_header"]

_DTYPES = {"U8": torch.uint8, "BOOL": torch.bool, "I64": torch.int64, "F32": torch.float32}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_METADATA = "__metadata__"
_MAX_LENGTH = 100 * 2**20  # bytes; the safetensors library has the same limit


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Attributes:
        dtype: Type of its elements.
        shape: Its shape.
        offset: Position of its first byte, counted from the beginning of the file.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Length of the tensor in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """Position of the first byte after the tensor."""
        return self.offset + self.nbytes


def make_header(
    tensors: Mapping[str, tuple[torch.dtype, Sequence[int]]], key: str, value: Any, *, length: int | None = None
) -> tuple[bytes, dict[str, StoredTensor]]:
    """Make the header of a file whose tensors follow one another without gaps.

    Equal arguments give equal bytes. That is why the metadata have one key only: the safetensors library writes several
    keys in random order.

    Args:
        tensors: Element type and shape of each tensor by name, in the order in which they are stored. Types are uint8,
            bool, int64 and float32. A tensor is aligned if no earlier one breaks its alignment.
        key: The key of the metadata.
        value: What the metadata hold under the key; it is written as JSON.
        length: Length of the header in bytes, a multiple of 8; by default the smallest that is enough.

    Returns:
        The first bytes of the file, and the place of each tensor.

    Raises:
        ValueError: If the header needs more bytes than ``length``.
    """
    entries: dict[str, Any] = {_METADATA: {key: json.dumps(value, sort_keys=True)}}
    relative: dict[str, StoredTensor] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        relative[name] = stored = StoredTensor(dtype, tuple(shape), end)
        end = stored.end
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [stored.offset, end]}
    text = json.dumps(entries).encode()
    if length is None:
        length = 8 + math.ceil(len(text) / 8) * 8
    if 8 + len(text) > length:
        raise ValueError(f"the header needs {8 + len(text)} bytes, more than {length}")
    header = struct.pack("<Q", length - 8) + text.ljust(length - 8)
    return header, {name: StoredTensor(t.dtype, t.shape, length + t.offset) for name, t in relative.items()}


def read_header(path: Path, key: str) -> tuple[Any, dict[str, StoredTensor]]:
    """Read a header that :func:`make_header` made.

    Args:
        path: The file.
        key: The key of the metadata.

    Returns:
        The value under the key, and the place of each tensor. A place may lie beyond the end of a file that is cut off.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it does not begin with a header that has the key and consistent entries.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MAX_LENGTH, path.stat().st_size - 8):
                raise ValueError("the file is shorter than its header")
            entries = json.loads(file.read(length))
        value = json.loads(entries.pop(_METADATA)[key])
        return value, {name: _stored_tensor(name, entry, 8 + length) for name, entry in entries.items()}
    except (struct.error, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _stored_tensor(name: str, entry: Mapping[str, Any], start: int) -> StoredTensor:
    """One entry of a header; ``start`` is the position of the first tensor in the file."""
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"the shape or the offsets of {name} are not integers from 0")
    stored = StoredTensor(_DTYPES[entry["dtype"]], shape, start + begin)
    if stored.nbytes != end - begin:
        raise ValueError(f"the shape and the offsets of {name} do not agree")
    return stored
