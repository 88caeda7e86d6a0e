"""Decodes the images of a tree in parallel, into one array.

The part and the row of each image are decided from the names alone, before anything is decoded. So a damaged file moves
no other file to another part. The array comes from :meth:`~halikit.data.dataset.Request.allocate`: it lies in memory,
or in the file of a pack.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from halikit.data.dataset import DataError, DataSet, Request, Split
from halikit.data.image import MAX_BYTES, BadImageError, Crop, decode, quiet
from halikit.data.tree import File, Tree, printable

__all__ = ["Entry", "Listing", "Skipped", "decode_listing"]

MAX_SKIPPED, MAX_SKIPPED_SHARE = 3, 0.01  # more skipped images than both allow are an error

# Limits of what one thread gets at a time: files, bytes in the files, and decoded pixels where the size is known.
_CHUNK_FILES, _CHUNK_BYTES, _CHUNK_PIXELS = 64, 2**20, 2**20
# Reported are images that are all so dark, and more images than this share that have one value throughout.
_DARK, _MAX_BLANK = 64, 0.5
_ROWS = 1024  # images moved at a time

Decoded = tuple[File, NDArray[np.uint8] | str]  # a file with its pixels, or with the reason why it has none


@dataclass(frozen=True)
class Entry:
    """An image file with its labels.

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
    """The images of a tree, divided into parts.

    Args:
        parts: The entries of each part, in the order train, validation, test. Without test, validation is also test.
        classes: Names of the classes.
        attributes: Names of the attributes.
        crop: The square that is cut out of each image; by default the largest, and only if a size is requested.
    """

    parts: Mapping[str, Sequence[Entry]]
    classes: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    crop: Crop | None = None


@dataclass
class Skipped:
    """Files that are left out, with reasons, and the limit on their number.

    Args:
        request: Says whether any file may be skipped.
        total: Number of all images.
        files: Images that are left out, as (path, reason).
        notes: Other things to report, such as whole folders, as (path, reason). A strict request refuses them too.
        guesses: What the reader assumed, a sentence each. A strict request refuses them too.
        remarks: What is worth saying and certain, a sentence each.
    """

    request: Request
    total: int = 0
    files: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def add(self, path: str, reason: str) -> None:
        """Leave out one image.

        Raises:
            DataError: If this is more than the request allows.
        """
        self.files.append((path, reason))
        self.check()

    def check(self) -> None:
        """Raise a DataError if more is left out than the request allows."""
        spec, strict = self.request.spec, self.request.strict
        if strict and self.notes:
            path, reason = self.notes[0]
            raise DataError(f"{spec}: {printable(path)}: {reason}; strict allows no file to be skipped")
        if strict and self.guesses:
            raise DataError(f"{spec}: {self.guesses[0]}; strict allows no guess")
        limit = 0 if strict else max(MAX_SKIPPED, int(MAX_SKIPPED_SHARE * self.total))
        if len(self.files) <= limit:
            return
        examples = "; ".join(f"{printable(path)}: {reason}" for path, reason in self.files[: 1 if strict else 3])
        more = "; …" if len(self.files) > 3 else ""
        rule = "strict allows none" if strict else f"at most {limit} of {self.total} may be skipped"
        raise DataError(f"{spec}: files that cannot be used ({rule}):\n{examples}{more}")


def decode_listing(request: Request, tree: Tree, listing: Listing, skipped: Skipped) -> DataSet:
    """Decode the images of ``listing``.

    Returns:
        Images ``(C, H, W)`` uint8, with C = 1 if all images are grey, otherwise 3, or as requested; each part in the
        order of its entries. The parts lie in one array, one after the other.

    Raises:
        DataError: If too many images cannot be decoded, a part is empty, or the sizes differ and no size is requested.
    """
    skipped.check()
    images, usable = _decode_all(request, tree, listing, skipped)
    listing = _without_empty_classes(listing, usable, skipped)
    skipped.check()
    rows = np.flatnonzero(usable)
    if len(rows) < len(usable):
        _move_to_front(images, rows)
    parts: dict[str, Split] = {}
    start = first = 0
    for name, entries in listing.parts.items():
        decoded = [entry for entry, is_usable in zip(entries, usable[first:], strict=False) if is_usable]
        first += len(entries)
        if not decoded:
            raise DataError(f"{request.spec}: no image of {name}/ can be decoded")
        parts[name] = _split(images[start : start + len(decoded)], decoded)
        start += len(decoded)
    if len(parts) == 1:
        raise DataError(f"{request.spec}: only one image; at least two are needed, one of them held out")
    return DataSet(
        spec=request.spec,
        shape=tuple(images.shape[1:]),
        classes=listing.classes,
        train=parts["train"],
        validation=parts.get("validation"),
        test=parts["test"] if "test" in parts else parts["validation"],
        skipped=(*sorted(skipped.files), *skipped.notes),
        attributes=listing.attributes,
        notes=(*skipped.remarks, *skipped.guesses),
    )


def _without_empty_classes(listing: Listing, usable: NDArray[np.bool_], skipped: Skipped) -> Listing:
    """The listing whose classes are those that have an image that was decoded."""
    entries = [entry for part in listing.parts.values() for entry in part]
    used = sorted(
        {entry.label for entry, good in zip(entries, usable, strict=True) if good and entry.label is not None}
    )
    if len(used) == len(listing.classes):
        return listing
    for label in sorted(set(range(len(listing.classes))).difference(used)):
        skipped.notes.append((listing.classes[label], "a class without an image that can be decoded"))
    new = {old: label for label, old in enumerate(used)}
    parts = {
        name: [entry if entry.label is None else replace(entry, label=new.get(entry.label)) for entry in part]
        for name, part in listing.parts.items()
    }
    return replace(listing, parts=parts, classes=tuple(listing.classes[label] for label in used))


@dataclass
class _Values:
    """What the values of all images say about how they were read."""

    count: int = 0
    highest: int = 0
    blank: int = 0
    first_blank: str = ""

    def add(self, path: str, pixels: NDArray[np.uint8]) -> None:
        self.count += 1
        self.highest = max(self.highest, int(pixels.max()))
        if (pixels == pixels[:1, :1]).all() and pixels.size > pixels[0, 0].size:
            self.first_blank = self.first_blank or path
            self.blank += 1

    def guesses(self) -> list[str]:
        """A sentence for each thing that is unusual."""
        found = []
        if self.blank > _MAX_BLANK * self.count:
            found.append(
                f"{self.blank} of {self.count} images are of one colour throughout, such as "
                f"{printable(self.first_blank)}; what is transparent is read as white"
            )
        elif self.highest <= _DARK:
            found.append(
                f"all images are nearly black, with values up to {self.highest} of 255; 16 bits are scaled by 65535, "
                "so scale scans of 10, 12 or 14 bits first"
            )
        return found


def _decode_all(
    request: Request, tree: Tree, listing: Listing, skipped: Skipped
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """All images in the order of the listing, ``(n, C, H, W)``, and which of the rows hold an image."""
    files = [entry.file for entries in listing.parts.values() for entry in entries]
    row_of = {file.path: row for row, file in enumerate(files)}
    names = (*listing.classes, *listing.attributes)
    images: NDArray[np.uint8] | None = None
    usable = np.zeros(len(files), bool)
    first_path, done, values = "", 0, _Values()
    with quiet():
        for chunk in _in_parallel(tree, files, request, listing.crop):
            for file, pixels in chunk:
                if isinstance(pixels, str):
                    skipped.add(file.path, pixels)
                    continue
                values.add(file.path, pixels)
                planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
                if images is None:
                    images = request.allocate((len(files), *planes.shape), names)
                    first_path = file.path
                elif images.shape[2:] != planes.shape[1:]:
                    raise _several_sizes(request.spec, images.shape[2:], first_path, planes.shape[1:], file.path)
                elif len(planes) > images.shape[1]:
                    images = _in_colour(images, request.allocate((len(files), *planes.shape), names))
                row = row_of[file.path]
                images[row], usable[row] = planes, True
            done += len(chunk)
            request.progress(done, len(files))
    if images is None:
        raise DataError(f"{request.spec}: none of {len(files)} images can be decoded; {skipped.files[0][1]}")
    skipped.guesses += values.guesses()
    return images, usable


def _several_sizes(spec: str, size: Sequence[int], path: str, other_size: Sequence[int], other_path: str) -> DataError:
    """The error for two images of different sizes, each given as (height, width)."""
    (height, width), (other_height, other_width) = size, other_size
    return DataError(
        f"{spec}: images of several sizes, such as {width}×{height} ({printable(path)}) and "
        f"{other_width}×{other_height} ({printable(other_path)}): choose one size with size={min(*size, *other_size)}"
    )


def _in_colour(grey: NDArray[np.uint8], colour: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Copy ``grey`` to ``colour``, last rows first, because both may begin at the same byte of a file."""
    for end in range(len(grey), 0, -_ROWS):
        rows = slice(max(0, end - _ROWS), end)
        colour[rows] = grey[rows].copy()
    return colour


def _move_to_front(images: NDArray[np.uint8], rows: NDArray[np.intp]) -> None:
    """Move ``rows``, in ascending order, to the first rows of ``images``."""
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        images[start : start + len(some)] = images[some]


def _split(images: NDArray[np.uint8], entries: Sequence[Entry]) -> Split:
    labels = [entry.label for entry in entries if entry.label is not None]
    attributes = [entry.attributes for entry in entries if entry.attributes is not None]
    return Split(
        torch.from_numpy(images),
        torch.tensor(labels) if len(labels) == len(entries) else None,
        torch.from_numpy(np.stack(attributes)) if len(attributes) == len(entries) else None,
    )


def _in_parallel(tree: Tree, files: Iterable[File], request: Request, crop: Crop | None) -> Iterator[list[Decoded]]:
    """Decode files with several threads; yields the results in storage order, some files at a time.

    Threads are enough, because Pillow releases the interpreter lock while it decodes. The number of waiting chunks is
    bounded, and so is the memory for them.
    """
    workers = min(os.cpu_count() or 1, 16)
    waiting: deque[Future[list[Decoded]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for chunk in _chunks(tree.in_storage_order(files), request.size):
            contents = [_content(tree, file) for file in chunk] if tree.is_archive else None
            waiting.append(pool.submit(_decode_chunk, tree, chunk, contents, request, crop))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(files: Iterable[File], size: int | None) -> Iterator[list[File]]:
    limit = _CHUNK_FILES if size is None else min(_CHUNK_FILES, max(1, _CHUNK_PIXELS // size**2))
    chunk: list[File] = []
    for file in files:
        chunk.append(file)
        if len(chunk) == limit or sum(file.nbytes for file in chunk) >= _CHUNK_BYTES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _content(tree: Tree, file: File) -> bytes | str:
    """The bytes of a file, or the reason why it cannot be read."""
    if file.nbytes > MAX_BYTES:
        return f"more than {MAX_BYTES // 2**20} MiB"
    try:
        return tree.read(file)
    except OSError as error:
        return error.strerror or str(error)


def _decode_chunk(
    tree: Tree, files: Sequence[File], contents: Sequence[bytes | str] | None, request: Request, crop: Crop | None
) -> list[Decoded]:
    """Decode some files; ``contents`` is ``None`` if this thread reads them itself."""
    results: list[Decoded] = []
    for number, file in enumerate(files):
        content = _content(tree, file) if contents is None else contents[number]
        try:
            found = content if isinstance(content, str) else decode(content, request.size, crop, request.channels)
            results.append((file, found))
        except BadImageError as error:
            results.append((file, str(error)))
    return results
