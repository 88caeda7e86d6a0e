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

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from halikit.data.dataset import DataError, DataSet
from halikit.data.image import SUFFIXES
from halikit.data.listing import Entry, Listing, Skipped, read
from halikit.data.request import Request
from halikit.data.tree import File, Tree, names, open_tree, printable, suffix_of

__all__ = ["has_images", "load_folder"]

SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class _Place:
    """Where an image belongs: its split, ``None`` where the tree has no splits, and its class."""

    split: str | None
    label: str | None


def has_images(path: Path) -> bool:
    """Whether a directory or archive holds files under the names of images."""
    return any(suffix_of(name) in SUFFIXES for name in names(path))


def load_folder(request: Request, accept: Callable[[Listing], None] = lambda listing: None) -> DataSet:
    """Read a tree of images by the rules at the head of this module.

    Args:
        request: What is asked for.
        accept: Raises a DataError on a tree that a source with stricter rules cannot take, before it is decoded.

    Returns:
        Images ``(C, H, W)`` uint8, C = 1 if every image is grey, else 3.

    Raises:
        DataError: If there are no images, too many cannot be read, their sizes differ and none is asked for,
            or splits and classes do not fit together.
    """
    with open_tree(request.path, SUFFIXES.__contains__) as tree:
        files = _unwrap(tree)
        if not files:
            unread = f"; {printable(tree.refused[0][0])}: {tree.refused[0][1]}" if tree.refused else ""
            raise DataError(f"{request.spec}: no images here (looked for {', '.join(sorted(SUFFIXES))}){unread}")
        skipped = Skipped(request, len(files) + len(tree.refused), list(tree.refused))
        places = _arrange(files, skipped)
        classes = tuple(sorted({place.label for place in places.values() if place.label is not None}))
        label_of: dict[str | None, int] = {name: label for label, name in enumerate(classes)}
        parts = _divide([file for file in files if file.path in places], places)
        listing = Listing(
            {name: [Entry(f, label_of.get(places[f.path].label)) for f in part] for name, part in parts.items()},
            classes,
        )
        accept(listing)
        return read(request, tree, listing, skipped)


def _unwrap(tree: Tree) -> list[File]:
    """The tree's files; those of an archive without the folders that only wrap it."""
    files = list(tree.files)
    while tree.sequential and files:
        wrapper, *others = {file.parts[0] for file in files}
        if others or wrapper.casefold() in SPLITS or any(len(file.parts) < 3 for file in files):
            break
        files = [replace(file, path=file.path.partition("/")[2]) for file in files]
    return files


def _arrange(files: Sequence[File], skipped: Skipped) -> dict[str, _Place]:
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


def _divide(files: Sequence[File], places: Mapping[str, _Place]) -> dict[str, list[File]]:
    """Train, validation and test, each in the order of the paths (the table at the head of this module)."""
    files = sorted(files, key=lambda file: file.parts)
    parts: dict[str, list[File]] = {name: [] for name in ("train", "validation", "test")}
    for file in files:
        parts[places[file.path].split or "train"].append(file)
    if not parts["validation"] and not parts["test"]:
        scores = [_score(file.path) for file in files]
        # However few they are, neither part is empty; of one alone nothing can be held out.
        tenth = min(max(0.1, min(scores)), sorted(scores)[-2]) if len(files) > 1 else -1
        parts["train"] = [file for file, score in zip(files, scores, strict=True) if score > tenth]
        parts["test"] = [file for file, score in zip(files, scores, strict=True) if score <= tenth]
    elif not parts["validation"]:
        sizes = Counter(places[file.path].label for file in parts["train"])
        left, train = Counter(sizes), list[File]()
        for file in parts["train"]:
            label = places[file.path].label
            (parts["validation"] if left[label] <= sizes[label] // 10 else train).append(file)
            left[label] -= 1
        parts["train"] = train
    return {name: part for name, part in parts.items() if part or name == "train"}


def _score(path: str) -> float:
    """A number in [0, 1) that a path has everywhere and always."""
    name = unicodedata.normalize("NFC", path).encode("utf-8", "surrogateescape")
    return int.from_bytes(sha256(name).digest()[:6]) / 2**48


def _listed(folders: Iterable[str]) -> str:
    return ", ".join(f"{folder}/" for folder in sorted(folders))
