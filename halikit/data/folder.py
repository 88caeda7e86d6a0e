"""``folder:``: a tree of images, or an archive of one.

First-level folders named train, val, valid, validation or test (in any case) are splits, and the classes lie below.
Otherwise the first-level folders are the classes. Deeper folders make no difference.

| folders in the tree | train | validation | test |
|---|---|---|---|
| train, val and test | train | val | test |
| train and test | train without validation | the last tenth of each class, in file order | test |
| train and val | train | val | val again |
| no splits, or train alone | all other images | none | the images whose path hashes into a tenth |

Validation is the last tenth of each class, because the last tenth of a whole tree would be its last class. The hash is
that of the path below the root (SHA-256 of its NFC form in UTF-8), so it depends neither on other files nor on the
machine.

| what is in the tree | what happens to it |
|---|---|
| images at the root only | no classes |
| an image beside class folders or beside split folders | skipped |
| another folder beside split folders | skipped with all its images |
| a class that the training part does not have | an error |
| only grey images | one channel; with any colour image three |
| images of several sizes | an error, unless a size is requested: then the centre square, resized |
| files without the name of an image | ignored |
| images that cannot be decoded (:mod:`halikit.data.image`, :mod:`halikit.data.tree`) | skipped, with the reason |
| more than 3 images skipped and more than 1 % of all, or any if strict | an error |
| an archive with one outermost folder, not a split, that holds only folders | as if that folder were the root |
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from halikit.data.dataset import DataError, DataSet, Request
from halikit.data.image import SUFFIXES
from halikit.data.listing import Entry, Listing, Skipped, decode_listing
from halikit.data.tree import File, Tree, names, open_tree, printable, suffix_of

__all__ = ["has_images", "load_folder"]

SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class _Place:
    """The split of an image, ``None`` if the tree has no splits, and the name of its class."""

    split: str | None
    label: str | None


def has_images(path: Path) -> bool:
    """Whether a directory or archive has files with the names of images."""
    return any(suffix_of(name) in SUFFIXES for name in names(path))


def load_folder(request: Request, check: Callable[[Listing], None] = lambda listing: None) -> DataSet:
    """Read a tree of images by the rules at the top of this module.

    Args:
        request: The request.
        check: Called before decoding; raises a DataError if a source with stricter rules cannot use the tree.

    Returns:
        Images ``(C, H, W)`` uint8, with C = 1 if all images are grey, otherwise 3.

    Raises:
        DataError: If there are no images, too many cannot be decoded, their sizes differ and no size is requested,
            or splits and classes do not fit together.
    """
    with open_tree(request.path, SUFFIXES) as tree:
        files = _unwrap(tree)
        if not files:
            unread = f"; {printable(tree.refused[0][0])}: {tree.refused[0][1]}" if tree.refused else ""
            raise DataError(f"{request.spec}: no images here (looked for {', '.join(sorted(SUFFIXES))}){unread}")
        skipped = Skipped(request, len(files) + len(tree.refused), list(tree.refused))
        places = _arrange(files, skipped)
        classes = tuple(sorted({place.label for place in places.values() if place.label is not None}))
        label_of: dict[str | None, int] = {name: label for label, name in enumerate(classes)}
        parts = _divide([file for file in files if file.path in places], places)
        entries = {
            name: [Entry(file, label_of.get(places[file.path].label)) for file in part] for name, part in parts.items()
        }
        listing = Listing(entries, classes)
        check(listing)
        return decode_listing(request, tree, listing, skipped)


def _unwrap(tree: Tree) -> list[File]:
    """The files of the tree; in an archive without the outermost folders that hold nothing but one folder."""
    files = list(tree.files)
    while tree.is_archive and files:
        wrapper, *others = {file.steps[0] for file in files}
        if others or wrapper.casefold() in SPLITS or any(len(file.steps) < 3 for file in files):
            break
        files = [replace(file, path=file.path.partition("/")[2]) for file in files]
    return files


def _arrange(files: Sequence[File], skipped: Skipped) -> dict[str, _Place]:
    """The place of each file, by its path; reports the files that have none."""
    spec = skipped.request.spec
    firsts = {file.steps[0] for file in files if len(file.steps) > 1}
    splits = {first: SPLITS[first.casefold()] for first in firsts if first.casefold() in SPLITS}
    if splits and "train" not in splits.values():
        raise DataError(f"{spec}: {_listed(splits)} without train/: a tree with splits needs a train/")
    places: dict[str, _Place] = {}
    outside: Counter[str] = Counter()
    for file in files:
        folders = file.steps[:-1]
        if not splits:
            places[file.path] = _Place(None, folders[0] if folders else None)
        elif not folders:
            skipped.files.append((file.path, "lies beside the split folders"))
        elif folders[0] not in splits:
            outside[folders[0]] += 1
        else:
            places[file.path] = _Place(splits[folders[0]], folders[1] if len(folders) > 1 else None)
    for first, count in sorted(outside.items()):
        skipped.notes.append((f"{first}/", f"{count} images in no split, beside {_listed(splits)}"))
    with_classes = {place.split for place in places.values() if place.label is not None}
    train_classes = {place.label for place in places.values() if place.split in ("train", None)}
    for path, place in list(places.items()):
        if place.label is None and place.split in with_classes:
            skipped.files.append((path, "lies beside the class folders"))
            del places[path]
        elif place.label is not None and place.label not in train_classes:
            raise DataError(f"{spec}: {printable(path)}: train/ has no class {printable(place.label)!r}")
    return places


def _divide(files: Sequence[File], places: Mapping[str, _Place]) -> dict[str, list[File]]:
    """Train, validation and test by the first table at the top of this module, each in the order of the paths."""
    files = sorted(files, key=lambda file: file.steps)
    parts: dict[str, list[File]] = {name: [] for name in ("train", "validation", "test")}
    for file in files:
        parts[places[file.path].split or "train"].append(file)
    if not parts["validation"] and not parts["test"]:
        hashes = [_hash(file.path) for file in files]
        # With few images, at least one is held out and at least one is not; a single image cannot be held out.
        tenth = min(max(0.1, min(hashes)), sorted(hashes)[-2]) if len(files) > 1 else -1
        parts["train"] = [file for file, value in zip(files, hashes, strict=True) if value > tenth]
        parts["test"] = [file for file, value in zip(files, hashes, strict=True) if value <= tenth]
    elif not parts["validation"]:
        files_of: dict[str | None, list[File]] = {}
        for file in parts["train"]:
            files_of.setdefault(places[file.path].label, []).append(file)
        held_out = {file.path for group in files_of.values() for file in group[len(group) - len(group) // 10 :]}
        parts["validation"] = [file for file in parts["train"] if file.path in held_out]
        parts["train"] = [file for file in parts["train"] if file.path not in held_out]
    return {name: part for name, part in parts.items() if part or name == "train"}


def _hash(path: str) -> float:
    """A number in [0, 1) that depends on the path alone."""
    name = unicodedata.normalize("NFC", path).encode("utf-8", "surrogateescape")
    return int.from_bytes(sha256(name).digest()[:6]) / 2**48


def _listed(folders: Iterable[str]) -> str:
    return ", ".join(f"{folder}/" for folder in sorted(folders))
