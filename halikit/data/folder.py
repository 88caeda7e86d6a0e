"""``folder:``: any tree of images, or an archive of one.

First-level names among train, val, valid, validation and test (in any case) are splits, and the classes lie below;
otherwise the first level names the class. Folders below the class make no difference.

| what the tree has | train | validation | test |
|---|---|---|---|
| train, val and test | as they are | val | test |
| train and test | without validation | the last tenth, in file order, of each class | test |
| train and val | as it is | val | val again |
| no splits, or train alone | the rest | none | the images whose path hashes into a tenth |

The tenth of each class, because in file order the last tenth of a whole tree would be its last class. The hash is
of the path below the root (SHA-256 of its NFC form in UTF-8), so that it depends on no other file and no machine.

| what is met | what becomes of it |
|---|---|
| images at the root only | no classes |
| an image beside class folders or beside split folders | skipped |
| a further folder beside split folders | skipped as a whole |
| a class that the training part does not have | an error |
| every image grey | one channel, otherwise three |
| images of several sizes | an error, unless a size is asked for: the centre square, resized |
| files under other names than an image's | ignored |
| images that cannot be read (:mod:`halikit.data.image`, :mod:`halikit.data.tree`) | skipped, with the reason |
| more than 3 images skipped and more than 1 % of all, or any if strict | an error |
| a lone outermost folder of an archive that holds only folders and is no split | stands for the archive itself |
"""

from __future__ import annotations

import os
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halikit.data.dataset import DataError, DataSet, Split
from halikit.data.image import MAX_BYTES, SUFFIXES, BadImageError, decode, quiet
from halikit.data.request import Request
from halikit.data.tree import File, Tree, names, open_tree, printable, suffix_of

__all__ = ["has_images", "load_folder"]

SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
FEW, SHARE = 3, 0.01  # skipped images beyond both are too many

_CHUNK_FILES, _CHUNK_BYTES = 64, 2**20  # what one thread takes at a time


@dataclass(frozen=True)
class _Place:
    """Where an image belongs: its split, ``None`` where the tree has no splits, and its class."""

    split: str | None
    label: str | None


@dataclass(frozen=True)
class _Image:
    """A decoded image with its place."""

    path: str
    place: _Place
    pixels: NDArray[np.uint8]


@dataclass
class _Skipped:
    """What is left out, why, and when that is too much."""

    request: Request
    total: int = 0
    files: list[tuple[str, str]] = field(default_factory=list)
    asides: list[tuple[str, str]] = field(default_factory=list)  # whole folders, which count as no image

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


def has_images(path: Path) -> bool:
    """Whether a directory or archive holds files under the names of images."""
    return any(suffix_of(name) in SUFFIXES for name in names(path))


def load_folder(request: Request) -> DataSet:
    """Read a tree of images by the rules at the head of this module.

    Returns:
        Images ``(C, H, W)`` uint8, C = 1 if every image is grey, else 3.

    Raises:
        DataError: If there are no images, too many cannot be read, their sizes differ and none is asked for,
            or splits and classes do not fit together.
    """
    with open_tree(request.path, SUFFIXES.__contains__) as tree, quiet():
        files = _unwrap(tree)
        if not files:
            unread = f"; {printable(tree.refused[0][0])}: {tree.refused[0][1]}" if tree.refused else ""
            raise DataError(f"{request.spec}: no images here (looked for {', '.join(sorted(SUFFIXES))}){unread}")
        skipped = _Skipped(request, len(files) + len(tree.refused), list(tree.refused))
        places = _arrange(files, skipped)
        skipped.check()
        classes = tuple(sorted({place.label for place in places.values() if place.label is not None}))
        images = _read(tree, [file for file in files if file.path in places], places, skipped)
    channels = 1 if all(image.pixels.ndim == 2 for image in images) else 3
    shape = (channels, *images[0].pixels.shape[:2])
    parts = {name: _split(part, shape, classes) for name, part in _divide(images, request.spec).items()}
    return DataSet(
        spec=request.spec,
        shape=shape,
        classes=classes,
        train=parts["train"],
        validation=parts.get("validation"),
        test=parts["test"] if "test" in parts else parts["validation"],
        skipped=(*sorted(skipped.files), *skipped.asides),
    )


def _unwrap(tree: Tree) -> list[File]:
    """The tree's files; those of an archive without the folders that only wrap it."""
    files = list(tree.files)
    while tree.sequential and files:
        wrapper, *others = {file.parts[0] for file in files}
        if others or wrapper.casefold() in SPLITS or any(len(file.parts) < 3 for file in files):
            break
        files = [replace(file, path=file.path.partition("/")[2]) for file in files]
    return files


def _arrange(files: Sequence[File], skipped: _Skipped) -> dict[str, _Place]:
    """Give each file its split and class by its path; note those that have none."""
    spec = skipped.request.spec
    firsts = {file.parts[0] for file in files if len(file.parts) > 1}
    splits = {first: SPLITS[first.casefold()] for first in firsts if first.casefold() in SPLITS}
    if splits and "train" not in splits.values():
        raise DataError(f"{spec}: {_listed(splits)} but no train/ beside it: a tree with splits needs a train/")
    places: dict[str, _Place] = {}
    aside: dict[str, int] = {}
    for file in files:
        folders = file.parts[:-1]
        if splits and folders[:1] and folders[0] not in splits:
            aside[folders[0]] = aside.get(folders[0], 0) + 1
        elif splits and not folders:
            skipped.files.append((file.path, "lies beside the split folders"))
        else:
            split = splits[folders[0]] if splits else None
            below = folders[1:] if splits else folders
            places[file.path] = _Place(split, below[0] if below else None)
    skipped.asides += [
        (f"{first}/", f"{count} images in no split, beside {_listed(splits)}") for first, count in sorted(aside.items())
    ]
    with_classes = {place.split for place in places.values() if place.label is not None}
    for path, place in list(places.items()):
        if place.label is None and place.split in with_classes:
            skipped.files.append((path, "lies beside the class folders"))
            del places[path]
    known = {place.label for place in places.values() if place.split in ("train", None)}
    for path, place in places.items():
        if place.label is not None and place.label not in known:
            raise DataError(f"{spec}: {printable(path)}: train/ has no class {printable(place.label)!r}")
    return places


def _read(tree: Tree, files: list[File], places: dict[str, _Place], skipped: _Skipped) -> list[_Image]:
    """Decode ``files`` in parallel; all images have one size when it returns, in the order of their paths."""
    request = skipped.request
    images: list[_Image] = []
    done = 0
    for chunk in _in_parallel(tree, files, request.size):
        for file, result in chunk:
            if isinstance(result, str):
                skipped.add(file.path, result)
                continue
            images.append(_Image(file.path, places[file.path], result))
            first = images[0]
            if result.shape[:2] != first.pixels.shape[:2]:
                raise DataError(
                    f"{request.spec}: images of several sizes, such as {_seen(first)} and {_seen(images[-1])}: "
                    f"ask for one with size={min(*result.shape[:2], *first.pixels.shape[:2])}"
                )
            if len(images) == 1:
                _check_memory(request, len(files), result)
        done += len(chunk)
        request.progress(done, len(files))
    if not images:
        raise DataError(f"{request.spec}: none of {len(files)} images can be read; {skipped.files[0][1]}")
    return sorted(images, key=lambda image: image.path.split("/"))


def _in_parallel(
    tree: Tree, files: Iterable[File], size: int | None
) -> Iterator[list[tuple[File, NDArray[np.uint8] | str]]]:
    """Each file with its pixels or the reason why it has none, in storage order, some tens of them at a time.

    Pillow lets go of the interpreter while it decodes. What is in flight is bounded, and so is the memory for it.
    """
    workers = min(os.cpu_count() or 1, 16)
    flying: deque[Future[list[tuple[File, NDArray[np.uint8] | str]]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for chunk in _chunks(tree.in_storage_order(files)):
            read = [_bytes(tree, file) if tree.sequential else None for file in chunk]
            flying.append(pool.submit(partial(_decode_all, tree, chunk, read, size)))
            if len(flying) > 2 * workers:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(files: Iterable[File]) -> Iterator[list[File]]:
    chunk: list[File] = []
    size = 0
    for file in files:
        chunk.append(file)
        size += file.size
        if len(chunk) == _CHUNK_FILES or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
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
    tree: Tree, files: Sequence[File], read: Sequence[bytes | str | None], size: int | None
) -> list[tuple[File, NDArray[np.uint8] | str]]:
    results: list[tuple[File, NDArray[np.uint8] | str]] = []
    for file, data in zip(files, read, strict=True):
        content = _bytes(tree, file) if data is None else data
        try:
            results.append((file, content if isinstance(content, str) else decode(content, size)))
        except BadImageError as error:
            results.append((file, str(error)))
    return results


def _divide(images: list[_Image], spec: str) -> dict[str, list[_Image]]:
    """Train, validation and test, each in the order of the paths (the table at the head of this module)."""
    parts: dict[str, list[_Image]] = {}
    for image in images:
        parts.setdefault(image.place.split or "train", []).append(image)
    if not parts.get("train"):
        raise DataError(f"{spec}: no image of train/ can be read")
    if parts.keys() == {"train"}:
        if len(images) < 2:
            raise DataError(f"{spec}: one image only; it takes two, to train on and to hold out")
        scores = [_score(image.path) for image in images]
        # However few they are, neither part is empty.
        tenth = min(max(0.1, min(scores)), sorted(scores)[-2])
        parts["train"] = [image for image, score in zip(images, scores, strict=True) if score > tenth]
        parts["test"] = [image for image, score in zip(images, scores, strict=True) if score <= tenth]
    elif "validation" not in parts:
        sizes: dict[str | None, int] = {}
        for image in parts["train"]:
            sizes[image.place.label] = sizes.get(image.place.label, 0) + 1
        left, train, validation = dict(sizes), list[_Image](), list[_Image]()
        for image in parts["train"]:
            label = image.place.label
            (validation if left[label] <= sizes[label] // 10 else train).append(image)
            left[label] -= 1
        parts["train"] = train
        if validation:
            parts["validation"] = validation
    return parts


def _score(path: str) -> float:
    """A number in [0, 1) that a path has everywhere and always."""
    name = unicodedata.normalize("NFC", path).encode("utf-8", "surrogateescape")
    return int.from_bytes(sha256(name).digest()[:6]) / 2**48


def _split(images: list[_Image], shape: tuple[int, ...], classes: tuple[str, ...]) -> Split:
    """Stack ``images`` into one tensor ``(n, *shape)``."""
    stacked = torch.empty((len(images), *shape), dtype=torch.uint8)
    for row, image in zip(stacked.numpy(), images, strict=True):
        row[:] = image.pixels if image.pixels.ndim == 2 else image.pixels.transpose(2, 0, 1)
    index: dict[Any, int] = {name: label for label, name in enumerate(classes)}
    labels: Tensor | None = None
    if all(image.place.label is not None for image in images):
        labels = torch.tensor([index[image.place.label] for image in images], dtype=torch.int64)
    return Split(stacked, labels)


def _check_memory(request: Request, count: int, pixels: NDArray[np.uint8]) -> None:
    """Refuse what cannot be held, before trying to."""
    if not hasattr(os, "sysconf"):
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = 2 * count * pixels.nbytes  # as decoded, and stacked
    if needed > memory:
        height, width = pixels.shape[:2]
        raise DataError(
            f"{request.spec}: loading {count} images of {width}×{height} takes {needed / 2**30:.0f} GiB of memory, "
            f"of which this machine has {memory / 2**30:.0f}: ask for a smaller one, as with size=64"
        )


def _seen(image: _Image) -> str:
    height, width = image.pixels.shape[:2]
    return f"{width}×{height} ({printable(image.path)})"


def _listed(folders: Iterable[str]) -> str:
    return ", ".join(f"{folder}/" for folder in sorted(folders))
