"""``celeba:``: aligned CelebA faces, ``img_align_celeba`` with its two text files, as a folder, zip or tar.

| what is there | what happens to it |
|---|---|
| images of 178×218 | the usual centre square of 148 |
| images of the same proportions in another size | the same square, scaled: 74 of 89×109 |
| images of other proportions | skipped; an error if they are many |
| ``list_attr_celeba``, .txt or Kaggle's .csv | the attributes, by name; without the file there are none (reported) |
| ``list_eval_partition``, likewise | the parts; without the file 60/20/20 by index (reported, not strict) |
| images as .png, with rows that name .jpg | matched by their numbers |
| an image without a row in one of them, two images of one number | an error |
| rows without an image | reported; an error if strict |

The text files may be in the archive, beside it or beside the images, or in ``Anno/`` and ``Eval/`` there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from halikit.data.dataset import DataError, DataSet, Request
from halikit.data.image import Crop
from halikit.data.listing import Entry, Listing, Skipped, decode_listing
from halikit.data.tree import File, Tree, first_names, open_directory, open_tree, printable
from halikit.utils.text import decode_text

__all__ = ["has_celeba", "load_celeba"]

FOLDER, ATTRIBUTES, PARTITION = "img_align_celeba", "list_attr_celeba", "list_eval_partition"
CROP = Crop(178, 218, 148)

_IMAGE = re.compile(r"\d{6}\.(jpg|png)", re.IGNORECASE)
_PARTS = {"0": "train", "1": "validation", "2": "test"}
_ARCHIVE = re.compile(r".*celeba.*\.(zip|tar)", re.IGNORECASE)
_TEXTS = (".txt", ".csv")
_SUFFIXES = {".jpg", ".png", *_TEXTS, ".zip", ".tar"}


def has_celeba(path: Path) -> bool:
    """Whether a directory or archive has files of CelebA."""
    if FOLDER in path.name or (path / FOLDER).is_dir():
        return True
    seen = first_names(path)
    named = {FOLDER, *(name + suffix for name in (ATTRIBUTES, PARTITION) for suffix in _TEXTS)}
    return bool(named & seen) or (path.is_dir() and any(map(_ARCHIVE.fullmatch, seen)))


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
        _refuse_doubles(images, request.spec)
        beside = trees[0].root.resolve().parent
        # Kaggle's folder of images lies in one of the same name.
        places = [beside, beside.parent] if FOLDER in beside.name else [beside]
        trees += [
            open_directory(place / folder, _TEXTS, deep=False) for place in places for folder in (".", "Anno", "Eval")
        ]
        skipped = Skipped(request, len(images) + len(tree.refused), list(tree.refused))
        names, attributes = _attributes(_table(trees, ATTRIBUTES), images, skipped)
        entries = [Entry(file, attributes=attributes.get(_number(file.name))) for file in images]
        parts = _parts(_table(trees, PARTITION), entries, skipped)
        return decode_listing(request, tree, Listing(parts, (), names, CROP), skipped)


@dataclass(frozen=True)
class _Table:
    """A text file: its name and its non-empty lines, each as a list of cells."""

    name: str
    lines: list[list[str]]

    @property
    def is_csv(self) -> bool:
        return self.name.endswith(".csv")


def _table(trees: Sequence[Tree], name: str) -> _Table | None:
    """A text file in the first tree that has it, with either suffix; ``None`` if no tree has it."""
    for tree in trees:
        for file in tree.files:
            stem, dot, suffix = file.name.rpartition(".")
            if stem.lower() == name and dot + suffix.lower() in _TEXTS:
                lines = [line for line in decode_text(tree.read(file)).splitlines() if line.strip()]
                # A spreadsheet may write a CSV file with semicolons or quotes.
                cells = [re.split(r"[\s,;]+", line.replace('"', "").strip().rstrip(",;")) for line in lines]
                return _Table(f"{name}.{suffix.lower()}", cells)
    return None


def _number(name: str) -> str:
    """What identifies a face: the digits of the name of its image."""
    return name.partition(".")[0]


def _images(tree: Tree) -> list[File]:
    """The aligned faces, in the order of their numbers."""
    files = [file for file in tree.files if _IMAGE.fullmatch(file.name)]
    if FOLDER not in tree.root.name:
        files = [file for file in files if FOLDER in file.path]
    return sorted(files, key=lambda file: file.name)


def _refuse_doubles(images: Sequence[File], spec: str) -> None:
    for file, following in pairwise(images):
        if _number(file.name) == _number(following.name):
            raise DataError(
                f"{spec}: face {_number(file.name)} is here twice, in {printable(file.path)} and "
                f"{printable(following.path)}: name one of the folders"
            )


def _attributes(
    table: _Table | None, images: Sequence[File], skipped: Skipped
) -> tuple[tuple[str, ...], dict[str, NDArray[np.bool_]]]:
    """The names of the attributes, and the attributes of each image by its number."""
    if table is None:
        skipped.remarks.append(f"no attributes, because there is no {ATTRIBUTES}.txt or .csv")
        return (), {}
    where = f"{skipped.request.spec}: {table.name}"
    if table.is_csv:
        names, lines = tuple(table.lines[0][1:]) if table.lines else (), table.lines[1:]
        if not names:
            raise DataError(f"{where} does not begin with image_id and the names of the attributes")
    else:
        names, lines = _official(table, where)
    rows: dict[str, NDArray[np.bool_]] = {}
    for image, *values in lines:
        if len(values) != len(names) or not {"1", "-1"}.issuperset(values):
            raise DataError(f"{where}: the row of {printable(image)} is not {len(names)} values of 1 and -1")
        rows[_number(image)] = np.array([value == "1" for value in values])
    _check_rows(table.name, rows, images, skipped)
    return names, rows


def _official(table: _Table, where: str) -> tuple[tuple[str, ...], list[list[str]]]:
    """The names and the rows of the owners' text file, which begins with the number of its rows."""
    first, *lines = table.lines or [[]]
    if not lines or len(first) != 1 or not first[0].isdecimal():
        raise DataError(f"{where} does not begin with the number of its rows and the names of the attributes")
    names, *rows = lines
    if int(first[0]) != len(rows):
        raise DataError(f"{where} has {len(rows)} rows, but its first line says {int(first[0])}; is it complete?")
    return tuple(names), rows


def _parts(table: _Table | None, entries: Sequence[Entry], skipped: Skipped) -> dict[str, list[Entry]]:
    spec = skipped.request.spec
    if table is None:
        skipped.guesses.append(f"there is no {PARTITION}.txt or .csv, so the images are divided 60/20/20 by index")
        cuts = [len(entries) * tenths // 10 for tenths in (0, 6, 8, 10)]
        parts = {name: list(entries[a:b]) for name, a, b in zip(_PARTS.values(), cuts, cuts[1:], strict=False)}
        if not all(parts.values()):
            raise DataError(f"{spec}: {len(entries)} images are too few for train, validation and test")
        return parts
    pairs = table.lines[1:] if table.is_csv else table.lines
    if not all(len(pair) == 2 and pair[1] in _PARTS for pair in pairs):
        raise DataError(f"{spec}: {table.name}: each row is the name of an image and 0, 1 or 2")
    part_of = {_number(image): _PARTS[code] for image, code in pairs}
    _check_rows(table.name, part_of, [entry.file for entry in entries], skipped)
    parts = {
        name: [entry for entry in entries if part_of[_number(entry.file.name)] == name] for name in _PARTS.values()
    }
    if not all(parts.values()):
        existing = " and ".join(name for name, part in parts.items() if part)
        raise DataError(
            f"{spec}: {table.name} puts all of these {len(entries)} images into {existing}, but train, validation and "
            "test must not be empty; without that file they are divided 60/20/20"
        )
    return parts


def _check_rows(name: str, rows: Collection[str], images: Sequence[File], skipped: Skipped) -> None:
    """Refuse images without a row, and report rows without an image."""
    for file in images:
        if _number(file.name) not in rows:
            raise DataError(f"{skipped.request.spec}: {name} has no row for {printable(file.path)}: they do not match")
    if len(rows) > len(images):
        skipped.notes.append((name, f"{len(rows) - len(images)} rows without an image"))
