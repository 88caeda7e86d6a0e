"""Numeric arrays in MATLAB's files of level 5 (``-v6`` and ``-v7``), read as a stream.

A file is a header of 128 bytes and then a sequence of elements. An element has a tag with its type and length, and its
content. An array is an element that contains four others: flags, dimensions, name, values. A compressed element is the
deflate stream of another element. Only real numeric arrays are read; cells, structures, objects and functions are
skipped.

Scipy's reader is not used: it is not made for files from others. Up to scipy 1.17.1 it looks up a damaged data type
beyond the end of a table, which ends the process (scipy/scipy#25349), and it holds all images of a file in memory.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["BadMatError", "Variable", "variables"]

TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}

_ORDERS = {b"IM": "<", b"MI": ">"}  # the byte order, as struct and numpy write it
_MATRIX, _COMPRESSED = 14, 15  # types of elements
_NUMERIC = range(6, 16)  # classes of arrays, from double to uint64
_COMPLEX = 0x0800  # a flag of an array
_HEADER, _BLOCK = 128, 2**16
_MAX_LENGTH = 2**16  # of flags, dimensions or a name, in bytes


class BadMatError(ValueError):
    """A file that cannot be read. The message is a short reason without the name of the file."""


class _Readable(Protocol):
    """A stream of bytes."""

    def read(self, n: int, /) -> bytes:
        """The next ``n`` bytes, or fewer at the end."""


@dataclass(frozen=True)
class Variable:
    """A numeric array whose values have not been read yet.

    Args:
        name: Its name.
        shape: Its dimensions; in the file, the first changes fastest.
        dtype: Type of its values.
        stream: Stream at the first value.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    stream: _Readable

    @property
    def by(self) -> str:
        """The shape for messages, such as 32×32×3."""
        return "×".join(map(str, self.shape))

    def read(self, count: int) -> NDArray[np.generic]:
        """The next ``count`` values, in the order in which they are stored.

        Raises:
            BadMatError: If the file ends before them.
        """
        return np.frombuffer(_exactly(self.stream, count * self.dtype.itemsize), self.dtype)


def variables(file: IO[bytes]) -> Iterator[Variable]:
    """The numeric arrays of a file, one after the other. Each must be read before the next one is requested.

    Args:
        file: A seekable stream at the beginning of the file.

    Raises:
        BadMatError: If the file is not of level 5, or is damaged.
    """
    head = file.read(_HEADER)
    if head.startswith(b"MATLAB 7.3"):
        raise BadMatError("saved as -v7.3, which is HDF5; save it again as -v7")
    order = _ORDERS.get(head[126:128])
    if len(head) < _HEADER or order is None:
        raise BadMatError("not a MATLAB file of level 5")
    while tag := file.read(8):
        if len(tag) < 8:
            raise BadMatError("cut off within a tag")
        kind, length = struct.unpack(f"{order}2I", tag)
        begin = file.tell()
        stream: _Readable = file
        if kind == _COMPRESSED:
            stream = _Inflated(file, length)
            kind, _ = struct.unpack(f"{order}2I", _exactly(stream, 8))
        if kind == _MATRIX and (variable := _variable(stream, order)):
            yield variable
        file.seek(begin + length)


def _variable(stream: _Readable, order: str) -> Variable | None:
    """The array that begins at the position of ``stream``; ``None`` if it is not real and numeric."""
    (flags, *_) = struct.unpack(f"{order}2I", _element(stream, order, 8)[:8])
    if flags & 0xFF not in _NUMERIC or flags & _COMPLEX:
        return None
    dimensions = _element(stream, order)
    shape = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions[: len(dimensions) // 4 * 4])
    name = _element(stream, order).decode("latin-1")
    kind, length, content = _tag(stream, order)
    if kind not in TYPES or not shape or min(shape) < 0:
        raise BadMatError(f"{name!r} is damaged")
    dtype = np.dtype(order + TYPES[kind])
    variable = Variable(name, shape, dtype, io.BytesIO(content) if content else stream)
    if math.prod(shape) * dtype.itemsize != length:
        raise BadMatError(f"{name!r} should be {variable.by} {dtype.name}, but has {length} bytes")
    return variable


def _tag(stream: _Readable, order: str) -> tuple[int, int, bytes]:
    """Type and length of the next element, and its content if the tag contains it."""
    tag = _exactly(stream, 8)
    kind, length = struct.unpack(f"{order}2I", tag)
    # Content of at most four bytes is in the tag; then the upper half of the type is its length.
    short = kind >> 16
    if not short:
        return kind, length, b""
    if short > 4:
        raise BadMatError("damaged")
    return kind & 0xFFFF, short, tag[4 : 4 + short]


def _element(stream: _Readable, order: str, min_length: int = 0) -> bytes:
    """The content of the next element, which is short; the padding to eight bytes is read as well."""
    _, length, content = _tag(stream, order)
    if not min_length <= length <= _MAX_LENGTH:
        raise BadMatError("damaged")
    if content or not length:
        return content
    return _exactly(stream, length + -length % 8)[:length]


def _exactly(stream: _Readable, count: int) -> bytes:
    content = bytearray()
    while len(content) < count:
        some = stream.read(min(count - len(content), 2**20))
        if not some:
            raise BadMatError("cut off within its data")
        content += some
    return bytes(content)


class _Inflated:
    """The next ``length`` bytes of a file, decompressed while they are read."""

    def __init__(self, file: IO[bytes], length: int) -> None:
        self._file, self._left = file, length
        self._inflate = zlib.decompressobj()

    def read(self, n: int, /) -> bytes:
        """At most ``n`` bytes; none at the end."""
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._file.read(min(_BLOCK, self._left))
            if not self._inflate.unconsumed_tail:
                self._left -= len(packed)
            try:
                content = self._inflate.decompress(packed, n)
            except zlib.error as error:
                raise BadMatError(f"damaged: {error}") from None
            if content or not packed:
                return content
        return b""
