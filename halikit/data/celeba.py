"""``celeba:``: aligned CelebA faces, ``img_align_celeba`` with its two text files, as a folder, zip or tar.

| what is there | what becomes of it |
|---|---|
| images of 178×218 | the centre square of 148, as is usual |
| images of the same proportions at another size | the same square, scaled: 74 of 89×109 |
| images of other proportions | skipped, and so an error if they are many |
| ``list_attr_celeba.txt`` | the attributes, by name; without it there are none |
| ``list_eval_partition.txt`` | the parts; without it, 60 % train, 20 % validation and 20 % test, by index |
| an image without a row in one of them | an error |
| rows without an image | reported; an error if strict |

The text files may lie in the archive, beside it or beside the images, or in ``Anno/`` and ``Eval/`` there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from halikit.data.dataset import DataError, DataSet
from halikit.data.image import Crop
from halikit.data.listing import Entry, Listing, Skipped, read
from halikit.data.request import Request
from halikit.data.tree import Directory, File, Tree, glance, open_tree, printable

__all__ = ["has_celeba", "load_celeba"]

FOLDER, ATTRIBUTES, PARTITION = "img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"
CROP = Crop(178, 218, 148)

_IMAGE = re.compile(r"\d{6}\.(jpg|png)", re.IGNORECASE)
_PARTS = {"0": "train", "1": "validation", "2": "test"}
_ARCHIVE = re.compile(r".*celeba.*\.(zip|tar)", re.IGNORECASE)
_SUFFIXES = {".jpg", ".png", ".txt", ".zip", ".tar"}
_BESIDE = (".", "Anno", "Eval")


def has_celeba(path: Path) -> bool:
    """Whether CelebA's files lie here."""
    if FOLDER in path.name or (path / FOLDER).is_dir():
        return True
    seen = glance(path)
    return bool({FOLDER, ATTRIBUTES, PARTITION} & seen) or (path.is_dir() and any(map(_ARCHIVE.fullmatch, seen)))


def load_celeba(request: Request) -> DataSet:
    """Read the faces with their attributes, in the order of their numbers.

    Returns:
        Images ``(3, 148, 148)`` uint8, or the crop at the size asked for; no classes, up to 40 attributes.

    Raises:
        DataError: If there are no images, or images and text files do not agree.
    """
    with ExitStack() as stack:
        tree = stack.enter_context(open_tree(request.path, _SUFFIXES.__contains__))
        images, trees = _images(tree), [tree]
        archive = next((file for file in tree.files if _ARCHIVE.fullmatch(file.parts[-1])), None)
        if not images and archive is not None and not tree.sequential:
            tree = stack.enter_context(open_tree(request.path / archive.path, _SUFFIXES.__contains__))
            images, trees = _images(tree), [*trees, tree]
        if not images:
            raise DataError(f"{request.spec}: no images {FOLDER}/000001.jpg … here")
        texts = _Texts(trees, request.spec)
        skipped = Skipped(request, len(images) + len(tree.refused), list(tree.refused))
        names, flags = _attributes(texts, images, skipped)
        entries = [Entry(file, attributes=flags.get(file.parts[-1])) for file in images]
        return read(request, tree, Listing(_parts(texts, entries, skipped), (), names, CROP), skipped)


class _Texts:
    """The text files, wherever they lie."""

    def __init__(self, trees: Sequence[Tree], spec: str) -> None:
        self.spec = spec
        root = trees[0].root.resolve()
        beside = [Directory(root.parent / folder, {".txt"}.__contains__, deep=False) for folder in _BESIDE]
        self._trees = [*trees, *beside]

    def lines(self, name: str) -> list[str] | None:
        """The lines of one that are not empty; ``None`` where there is none."""
        for tree in self._trees:
            file = next((file for file in tree.files if file.parts[-1] == name), None)
            if file is not None:
                return [line for line in tree.read(file).decode("utf-8", "replace").splitlines() if line.strip()]
        return None


def _images(tree: Tree) -> list[File]:
    """The aligned faces, in order of their numbers."""
    inside = FOLDER in tree.root.name
    files = [
        file
        for file in tree.files
        if _IMAGE.fullmatch(file.parts[-1]) and (inside or any(FOLDER in part for part in file.parts[:-1]))
    ]
    return sorted(files, key=lambda file: file.parts[-1])


def _attributes(
    texts: _Texts, images: Sequence[File], skipped: Skipped
) -> tuple[tuple[str, ...], dict[str, NDArray[np.bool_]]]:
    """Names, and by the name of an image which of them it has."""
    lines = texts.lines(ATTRIBUTES)
    if lines is None:
        return (), {}
    where = f"{texts.spec}: {ATTRIBUTES}"
    names = tuple(lines[1].split()) if len(lines) > 1 else ()
    if not lines or not lines[0].strip().isdecimal() or not names:
        raise DataError(f"{where} does not begin with the number of its rows and the names of the attributes")
    if int(lines[0]) != len(lines) - 2:
        raise DataError(f"{where} announces {int(lines[0])} rows and has {len(lines) - 2}: is it complete?")
    rows: dict[str, NDArray[np.bool_]] = {}
    for line in lines[2:]:
        image, *values = line.split()
        if len(values) != len(names) or not {"1", "-1"}.issuperset(values):
            raise DataError(f"{where}: the row of {printable(image)} is not {len(names)} values of 1 and -1")
        rows[image] = np.array([value == "1" for value in values])
    _check_rows(ATTRIBUTES, rows.keys(), images, skipped)
    return names, rows


def _parts(texts: _Texts, entries: Sequence[Entry], skipped: Skipped) -> dict[str, list[Entry]]:
    lines = texts.lines(PARTITION)
    if lines is None:
        cuts = [len(entries) * tenths // 10 for tenths in (0, 6, 8, 10)]
        parts = {name: list(entries[a:b]) for name, a, b in zip(_PARTS.values(), cuts, cuts[1:], strict=False)}
        missing = f"{len(entries)} images are too few to divide"
    else:
        pairs = [line.split() for line in lines]
        if not all(len(pair) == 2 and pair[1] in _PARTS for pair in pairs):
            raise DataError(f"{texts.spec}: {PARTITION}: each row is the name of an image and 0, 1 or 2")
        rows = {pair[0]: pair[1] for pair in pairs}
        _check_rows(PARTITION, rows.keys(), [entry.file for entry in entries], skipped)
        parts = {name: [] for name in _PARTS.values()}
        for entry in entries:
            parts[_PARTS[rows[entry.file.parts[-1]]]].append(entry)
        missing = f"{PARTITION} gives these {len(entries)} images to {', '.join(k for k in parts if parts[k])} alone"
    if not all(parts.values()):
        without = "" if lines is None else "; without that file they are divided 60/20/20"
        raise DataError(f"{texts.spec}: {missing}; there must be train, validation and test{without}")
    return parts


def _check_rows(name: str, rows: Collection[str], images: Sequence[File], skipped: Skipped) -> None:
    """Each image has its row; rows without an image are noted."""
    known = set(rows)
    without = next((file for file in images if file.parts[-1] not in known), None)
    if without is not None:
        raise DataError(f"{skipped.request.spec}: {name} has no row for {printable(without.path)}: they do not match")
    if len(known) > len(images):
        skipped.asides.append((name, f"{len(known) - len(images)} rows without an image"))
