"""``celeba:``: aligned CelebA faces, ``img_align_celeba`` with its two text files, as a folder, zip or tar.

| what is there | what happens to it |
|---|---|
| images of 178×218 | the usual centre square of 148 |
| images of the same proportions in another size | the same square, scaled: 74 of 89×109 |
| images of other proportions | skipped; an error if they are many |
| ``list_attr_celeba.txt`` | the attributes, by name; without the file there are none |
| ``list_eval_partition.txt`` | the parts; without the file 60 % train, 20 % validation and 20 % test, by index |
| an image without a row in one of them | an error |
| rows without an image | reported; an error if strict |

The text files may be in the archive, beside it or beside the images, or in ``Anno/`` and ``Eval/`` there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from halikit.data.dataset import DataError, DataSet, Request
from halikit.data.image import Crop
from halikit.data.listing import Entry, Listing, Skipped, decode_listing
from halikit.data.tree import File, Tree, first_names, open_directory, open_tree, printable

__all__ = ["has_celeba", "load_celeba"]

FOLDER, ATTRIBUTES, PARTITION = "img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"
CROP = Crop(178, 218, 148)

_IMAGE = re.compile(r"\d{6}\.(jpg|png)", re.IGNORECASE)
_PARTS = {"0": "train", "1": "validation", "2": "test"}
_ARCHIVE = re.compile(r".*celeba.*\.(zip|tar)", re.IGNORECASE)
_SUFFIXES = {".jpg", ".png", ".txt", ".zip", ".tar"}


def has_celeba(path: Path) -> bool:
    """Whether a directory or archive has files of CelebA."""
    if FOLDER in path.name or (path / FOLDER).is_dir():
        return True
    seen = first_names(path)
    return bool({FOLDER, ATTRIBUTES, PARTITION} & seen) or (path.is_dir() and any(map(_ARCHIVE.fullmatch, seen)))


def load_celeba(request: Request) -> DataSet:
    """Read the faces with their attributes, in the order of their numbers.

    Returns:
        Images ``(3, 148, 148)`` uint8, or the crop in the requested size; no classes, up to 40 attributes.

    Raises:
        DataError: If there are no images, or images and text files do not agree.
    """
    with ExitStack() as stack:
        tree = stack.enter_context(open_tree(request.path, _SUFFIXES))
        images, trees = _images(tree), [tree]
        archive = next((file for file in tree.files if _ARCHIVE.fullmatch(file.name)), None)
        if not images and archive is not None and not tree.is_archive:
            tree = stack.enter_context(open_tree(request.path / archive.path, _SUFFIXES))
            images, trees = _images(tree), [*trees, tree]
        if not images:
            raise DataError(f"{request.spec}: no images {FOLDER}/000001.jpg … here")
        beside = trees[0].root.resolve().parent
        trees += [open_directory(beside / folder, {".txt"}, deep=False) for folder in (".", "Anno", "Eval")]
        skipped = Skipped(request, len(images) + len(tree.refused), list(tree.refused))
        names, attributes = _attributes(_lines(trees, ATTRIBUTES), images, skipped)
        entries = [Entry(file, attributes=attributes.get(file.name)) for file in images]
        parts = _parts(_lines(trees, PARTITION), entries, skipped)
        return decode_listing(request, tree, Listing(parts, (), names, CROP), skipped)


def _lines(trees: Sequence[Tree], name: str) -> list[str] | None:
    """The non-empty lines of a text file in the first tree that has it; ``None`` if no tree has it."""
    for tree in trees:
        for file in tree.files:
            if file.name == name:
                return [line for line in tree.read(file).decode("utf-8", "replace").splitlines() if line.strip()]
    return None


def _images(tree: Tree) -> list[File]:
    """The aligned faces, in the order of their numbers."""
    files = [file for file in tree.files if _IMAGE.fullmatch(file.name)]
    if FOLDER not in tree.root.name:
        files = [file for file in files if FOLDER in file.path]
    return sorted(files, key=lambda file: file.name)


def _attributes(
    lines: Sequence[str] | None, images: Sequence[File], skipped: Skipped
) -> tuple[tuple[str, ...], dict[str, NDArray[np.bool_]]]:
    """The names of the attributes, and the attributes of each image by its name."""
    if lines is None:
        return (), {}
    where = f"{skipped.request.spec}: {ATTRIBUTES}"
    names = tuple(lines[1].split()) if len(lines) > 1 else ()
    if not names or not lines[0].strip().isdecimal():
        raise DataError(f"{where} does not begin with the number of its rows and the names of the attributes")
    if int(lines[0]) != len(lines) - 2:
        raise DataError(f"{where} has {len(lines) - 2} rows, but its first line says {int(lines[0])}; is it complete?")
    rows: dict[str, NDArray[np.bool_]] = {}
    for line in lines[2:]:
        image, *values = line.split()
        if len(values) != len(names) or not {"1", "-1"}.issuperset(values):
            raise DataError(f"{where}: the row of {printable(image)} is not {len(names)} values of 1 and -1")
        rows[image] = np.array([value == "1" for value in values])
    _check_rows(ATTRIBUTES, rows, images, skipped)
    return names, rows


def _parts(lines: Sequence[str] | None, entries: Sequence[Entry], skipped: Skipped) -> dict[str, list[Entry]]:
    spec = skipped.request.spec
    if lines is None:
        cuts = [len(entries) * tenths // 10 for tenths in (0, 6, 8, 10)]
        parts = {name: list(entries[a:b]) for name, a, b in zip(_PARTS.values(), cuts, cuts[1:], strict=False)}
        if not all(parts.values()):
            raise DataError(f"{spec}: {len(entries)} images are too few for train, validation and test")
        return parts
    pairs = [line.split() for line in lines]
    if not all(len(pair) == 2 and pair[1] in _PARTS for pair in pairs):
        raise DataError(f"{spec}: {PARTITION}: each row is the name of an image and 0, 1 or 2")
    part_of = {image: _PARTS[code] for image, code in pairs}
    _check_rows(PARTITION, part_of, [entry.file for entry in entries], skipped)
    parts = {name: [entry for entry in entries if part_of[entry.file.name] == name] for name in _PARTS.values()}
    if not all(parts.values()):
        existing = " and ".join(name for name, part in parts.items() if part)
        raise DataError(
            f"{spec}: {PARTITION} puts all of these {len(entries)} images into {existing}, but train, validation and "
            "test must not be empty; without that file they are divided 60/20/20"
        )
    return parts


def _check_rows(name: str, rows: Collection[str], images: Sequence[File], skipped: Skipped) -> None:
    """Refuse images without a row, and report rows without an image."""
    for file in images:
        if file.name not in rows:
            raise DataError(f"{skipped.request.spec}: {name} has no row for {printable(file.path)}: they do not match")
    if len(rows) > len(images):
        skipped.notes.append((name, f"{len(rows) - len(images)} rows without an image"))
