"""What a tree of images holds before any is decoded, and how all of it is decoded: in parallel, into one array.

Where an image belongs is decided from the listing alone, so that a damaged file moves no other. The array is that of
:meth:`~halikit.data.request.Request.allocate`: memory, or the file that is being packed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from halikit.data.dataset import DataError, DataSet, Split
from halikit.data.image import MAX_BYTES, BadImageError, Crop, decode, quiet
from halikit.data.request import Request
from halikit.data.tree import File, Tree, printable

__all__ = ["Entry", "Listing", "Skipped", "read"]

FEW, SHARE = 3, 0.01  # skipped images beyond both are too many

# What one thread takes at a time, by number, as stored, and as decoded where that is known.
_CHUNK_FILES, _CHUNK_BYTES, _CHUNK_PIXELS = 64, 2**20, 2**20
_CHUNK_ROWS = 1024  # what is moved at a time

Decoded = tuple[File, NDArray[np.uint8] | str]  # a file with its pixels, or the reason why it has none


@dataclass(frozen=True)
class Entry:
    """An image file and what is known of it.

    Args:
        file: The file.
        label: Index of its class.
        attributes: ``(A,)`` bool.
    """

    file: File
    label: int | None = None
    attributes: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Listing:
    """The images of a tree in their parts.

    Args:
        parts: By name, in the order train, validation, test; without test, validation stands for it as well.
        classes: Names of the classes.
        attributes: Names of the attributes.
        crop: The square that is cut out of each image.
    """

    parts: Mapping[str, Sequence[Entry]]
    classes: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    crop: Crop | None = None


@dataclass
class Skipped:
    """What is left out, why, and when that is too much.

    Args:
        request: It says whether any may be skipped.
        total: How many images there are in all.
        files: Those that are left out, with reasons.
        asides: The same for what counts as no image, such as whole folders.
    """

    request: Request
    total: int = 0
    files: list[tuple[str, str]] = field(default_factory=list)
    asides: list[tuple[str, str]] = field(default_factory=list)

    def add(self, path: str, reason: str) -> None:
        """Leave out one image.

        Raises:
            DataError: If that is one too many.
        """
        self.files.append((path, reason))
        self.check()

    def check(self) -> None:
        """Raise a DataError if more is left out than the request allows."""
        strict = self.request.strict
        if strict and self.asides:
            path, reason = self.asides[0]
            raise DataError(f"{self.request.spec}: {printable(path)}: {reason}; strict allows no file to be skipped")
        limit = 0 if strict else max(FEW, int(SHARE * self.total))
        if len(self.files) <= limit:
            return
        examples = "; ".join(f"{printable(path)}: {reason}" for path, reason in self.files[: FEW if limit else 1])
        more = "" if len(self.files) <= FEW else "; …"
        rule = "strict allows none" if strict else f"at most {limit} of {self.total} may be skipped"
        raise DataError(f"{self.request.spec}: files that cannot be used ({rule}):\n{examples}{more}")

    def all(self) -> tuple[tuple[str, str], ...]:
        """Files and asides, in the order in which they are reported."""
        return (*sorted(self.files), *self.asides)


def read(request: Request, tree: Tree, listing: Listing, skipped: Skipped) -> DataSet:
    """Decode the images of ``listing``.

    Returns:
        Images ``(C, H, W)`` uint8, C = 1 if every image is grey, else 3; each part in the order of its entries. The
        parts lie in one array, one after the other.

    Raises:
        DataError: If too many images cannot be read, a part comes out empty, or sizes differ and none is asked for.
    """
    skipped.check()
    entries = [entry for part in listing.parts.values() for entry in part]
    names = (*listing.classes, *listing.attributes)
    canvas, good = _decode(request, tree, entries, names, listing.crop, skipped)
    rows = np.flatnonzero(good)
    if len(rows) < len(entries):
        _close_up(canvas, rows)
    parts: dict[str, Split] = {}
    start = 0
    for name, part in listing.parts.items():
        kept = [entry for entry, fine in zip(part, good[: len(part)], strict=True) if fine]
        good = good[len(part) :]
        if not kept:
            raise DataError(f"{request.spec}: no image of {name}/ can be read")
        parts[name] = _split(canvas[start : start + len(kept)], kept)
        start += len(kept)
    if len(parts) == 1:
        raise DataError(f"{request.spec}: one image only; it takes two, to train on and to hold out")
    return DataSet(
        spec=request.spec,
        shape=tuple(canvas.shape[1:]),
        classes=listing.classes,
        train=parts["train"],
        validation=parts.get("validation"),
        test=parts["test"] if "test" in parts else parts["validation"],
        skipped=skipped.all(),
        attributes=listing.attributes,
    )


def _decode(
    request: Request,
    tree: Tree,
    entries: Sequence[Entry],
    names: Sequence[str],
    crop: Crop | None,
    skipped: Skipped,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """All images in the order of ``entries``, ``(n, C, H, W)``, and which of the rows hold one."""
    canvas: NDArray[np.uint8] | None = None
    row_of = {entry.file.path: row for row, entry in enumerate(entries)}
    good = np.zeros(len(entries), bool)
    first = ""
    done = 0
    with quiet():
        for chunk in _in_parallel(tree, [entry.file for entry in entries], request.size, crop):
            for file, pixels in chunk:
                if isinstance(pixels, str):
                    skipped.add(file.path, pixels)
                    continue
                channels, (height, width) = 1 if pixels.ndim == 2 else 3, pixels.shape[:2]
                if canvas is None:
                    canvas = request.allocate((len(entries), channels, height, width), names)
                    first = file.path
                elif canvas.shape[2:] != (height, width):
                    sizes = f"{canvas.shape[3]}×{canvas.shape[2]} ({printable(first)}) and {width}×{height}"
                    raise DataError(
                        f"{request.spec}: images of several sizes, such as {sizes} ({printable(file.path)}): "
                        f"ask for one with size={min(height, width, *canvas.shape[2:])}"
                    )
                elif canvas.shape[1] < channels:
                    canvas = _in_colour(canvas, request.allocate((len(entries), 3, height, width), names))
                row = row_of[file.path]
                canvas[row] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
                good[row] = True
            done += len(chunk)
            request.progress(done, len(entries))
    if canvas is None:
        raise DataError(f"{request.spec}: none of {len(entries)} images can be read; {skipped.files[0][1]}")
    return canvas, good


def _in_colour(grey: NDArray[np.uint8], colour: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fill ``colour`` from ``grey``, last rows first: both may begin at the same byte."""
    for end in range(len(grey), 0, -_CHUNK_ROWS):
        rows = slice(max(0, end - _CHUNK_ROWS), end)
        colour[rows] = grey[rows].copy()
    return colour


def _close_up(canvas: NDArray[np.uint8], rows: NDArray[np.intp]) -> None:
    """Move ``rows``, which ascend, to the front."""
    for start in range(0, len(rows), _CHUNK_ROWS):
        some = rows[start : start + _CHUNK_ROWS]
        canvas[start : start + len(some)] = canvas[some]


def _split(images: NDArray[np.uint8], entries: Sequence[Entry]) -> Split:
    labels = [entry.label for entry in entries if entry.label is not None]
    attributes = [entry.attributes for entry in entries if entry.attributes is not None]
    return Split(
        torch.from_numpy(images),
        torch.tensor(labels) if len(labels) == len(entries) else None,
        torch.from_numpy(np.stack(attributes)) if len(attributes) == len(entries) else None,
    )


def _in_parallel(tree: Tree, files: Iterable[File], size: int | None, crop: Crop | None) -> Iterator[list[Decoded]]:
    """Each file with its pixels or the reason why it has none, in storage order, some tens of them at a time.

    Pillow lets go of the interpreter while it decodes. What is in flight is bounded, and so is the memory for it.
    """
    workers = min(os.cpu_count() or 1, 16)
    flying: deque[Future[list[Decoded]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for chunk in _chunks(tree.in_storage_order(files), size):
            contents = [_bytes(tree, file) if tree.sequential else None for file in chunk]
            flying.append(pool.submit(partial(_decode_all, tree, chunk, contents, size, crop)))
            if len(flying) > 2 * workers:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(files: Iterable[File], size: int | None) -> Iterator[list[File]]:
    most = _CHUNK_FILES if size is None else min(_CHUNK_FILES, max(1, _CHUNK_PIXELS // size**2))
    chunk: list[File] = []
    stored = 0
    for file in files:
        chunk.append(file)
        stored += file.size
        if len(chunk) == most or stored >= _CHUNK_BYTES:
            yield chunk
            chunk, stored = [], 0
    if chunk:
        yield chunk


def _bytes(tree: Tree, file: File) -> bytes | str:
    """The file's bytes, or the reason why it cannot be read."""
    if file.size > MAX_BYTES:
        return f"more than {MAX_BYTES // 2**20} MiB"
    try:
        return tree.read(file)
    except OSError as error:
        return error.strerror or str(error)


def _decode_all(
    tree: Tree, files: Sequence[File], contents: Sequence[bytes | str | None], size: int | None, crop: Crop | None
) -> list[Decoded]:
    results: list[Decoded] = []
    for file, content in zip(files, contents, strict=True):
        data = _bytes(tree, file) if content is None else content
        try:
            results.append((file, data if isinstance(data, str) else decode(data, size, crop)))
        except BadImageError as error:
            results.append((file, str(error)))
    return results
