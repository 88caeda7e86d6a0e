"""``folder:``: a tree of images, or an archive of one.

First-level folders whose names mean a split (:mod:`halikit.data.split_names`) are splits, and the classes lie below.
Otherwise the first-level folders are the classes. Deeper folders make no difference. Where names may be both, the tree
is refused: ``folder-splits:`` takes what can be a split for a split, ``folder-classes:`` every folder for a class.

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
| one outermost folder, not a split, that holds only folders | as if that folder were the root |
| a split folder that holds nothing but a folder of the same meaning | as if that folder were the split |
| an image beside class folders or beside split folders | skipped |
| another folder beside split folders | skipped with all its images |
| split folders without one for training, two for one split, or splits below the classes | an error |
| a folder train with images, beside other folders with images | an error |
| a class that the training part does not have | an error |
| a class without an image that can be decoded | no class |
| dataset.json of StyleGAN's tool | its labels are the classes; without labels there are none |
| folders that only number the images: 00001/img00001234.png | no classes; reported |
| only grey images | one channel; with any colour image three |
| images with other channels | skipped, unless their number is requested |
| images of several sizes | an error, unless a size is requested: then the centre square, resized |
| images, videos and archives in formats that are not read, and images without the name of one | reported |
| images that are all nearly black, or each of one colour throughout | reported |
| other files without the name of an image | ignored |
| images that cannot be decoded (:mod:`halikit.data.image`, :mod:`halikit.data.tree`) | skipped, with the reason |
| more than 3 images skipped and more than 1 % of all, or anything skipped or reported if strict | an error |
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

from halikit.data.dataset import DataError, DataSet, Request
from halikit.data.dataset_json import NAME, are_shards, read_labels
from halikit.data.image import SUFFIXES
from halikit.data.listing import Entry, Listing, Skipped, decode_listing
from halikit.data.split_names import find_splits, is_usual, split_of
from halikit.data.tree import File, Tree, names, open_tree, printable, readable, suffix_of
from halikit.data.unread import IMAGES, report_unread

__all__ = ["has_images", "load_classes", "load_folder", "load_paths", "load_splits"]

Reading = Literal["auto", "splits", "classes"]  # of the first-level folders


@dataclass(frozen=True)
class _Place:
    """The split of an image, ``None`` if the tree has no splits, and the name of its class."""

    split: str | None
    label: str | None


def has_images(path: Path) -> bool:
    """Whether a directory or archive has files with the names of images, also of images that cannot be read."""
    return any(suffix_of(name) in SUFFIXES or suffix_of(name) in IMAGES for name in names(path))


def load_splits(request: Request) -> DataSet:
    """As :func:`load_folder`, where each first-level folder that can be a split is one."""
    return load_folder(request, reading="splits")


def load_classes(request: Request) -> DataSet:
    """As :func:`load_folder`, where each first-level folder is a class, whatever its name."""
    return load_folder(request, reading="classes")


def load_folder(
    request: Request, check: Callable[[Listing], None] = lambda listing: None, reading: Reading = "auto"
) -> DataSet:
    """Read a tree of images by the rules at the top of this module.

    Args:
        request: The request.
        check: Called before decoding; raises a DataError if a source with stricter rules cannot use the tree.
        reading: What the first-level folders are.

    Returns:
        Images ``(C, H, W)`` uint8, with C = 1 if all images are grey, otherwise 3.

    Raises:
        DataError: If there are no images, too many cannot be decoded, their sizes differ and no size is requested,
            or splits and classes do not fit together or cannot be told apart.
    """
    with open_tree(request.path) as tree:
        images = [file for file in tree.files if suffix_of(file.name) in SUFFIXES]
        refused = [(path, reason) for path, reason in tree.refused if _may_be_image(path)]
        skipped = Skipped(request, len(images) + len(refused), refused)
        report_unread(tree, skipped)
        if not images:
            unread = "".join(f"; {printable(path)}: {reason}" for path, reason in [*refused, *skipped.notes][:1])
            raise DataError(f"{request.spec}: no images here (looked for {', '.join(sorted(SUFFIXES))}){unread}")
        wrapper = _wrapper(images, reading)
        if wrapper and not tree.is_archive:
            skipped.remarks.append(f"{printable(wrapper)} holds everything and is taken for the root")
        files = [replace(file, path=file.path.removeprefix(wrapper)) for file in images]
        places = _arrange(files, skipped, reading)
        if reading != "classes":
            places = _with_listed_labels(places, files, tree, wrapper, skipped)
        classes = _in_order({place.label for place in places.values() if place.label is not None})
        label_of: dict[str | None, int] = {name: label for label, name in enumerate(classes)}
        classes = tuple(map(readable, classes))
        parts = _divide([file for file in files if file.path in places], places)
        entries = {
            name: [Entry(file, label_of.get(places[file.path].label)) for file in part] for name, part in parts.items()
        }
        listing = Listing(entries, classes)
        check(listing)
        return decode_listing(request, tree, listing, skipped)


def load_paths(
    paths: Sequence[str | Path], *, size: int | None = None, strict: bool = False, channels: int | None = None
) -> DataSet:
    """Read a list of image files, without classes. Those whose path hashes into a tenth are held out.

    Args:
        paths: The files, in any order. The path that is hashed begins below the folder that holds them all.
        size: As in :func:`halikit.data.load`.
        strict: Likewise.
        channels: Likewise.

    Returns:
        Images ``(C, H, W)`` uint8, in the order of their paths.

    Raises:
        DataError: If one is not a file or is named twice, or they cannot be used; see :func:`load_folder`.
    """
    places = [Path(os.path.abspath(Path(path).expanduser())) for path in paths]
    twice = [path for path, count in Counter(places).items() if count > 1]
    wrong = next((path for path in places if not path.is_file()), None)
    if wrong or twice:
        raise DataError(f"a list of paths: {wrong} is not a file" if wrong else f"a list of paths: {twice[0]} twice")
    root = Path(os.path.commonpath([path.parent for path in places]))
    files = [File(path.relative_to(root).as_posix(), path.stat().st_size, path) for path in places]
    tree = Tree(root, tuple(files), (), lambda path: path.open("rb"))
    request = Request("paths", size=size, strict=strict, channels=channels)
    parts = _divide(files, {file.path: _Place(None, None) for file in files})
    listing = Listing({name: [Entry(file) for file in part] for name, part in parts.items()})
    return decode_listing(request, tree, listing, Skipped(request, len(files)))


def _in_order(names: Collection[str]) -> tuple[str, ...]:
    """Numbers without leading zeros by value, other names by code points."""
    numbers = all(name.isdecimal() and str(int(name)) == name for name in names)
    return tuple(sorted(names, key=int if numbers else None))


def _may_be_image(path: str) -> bool:
    """Whether a file that cannot be used has the name of an image, or is a folder that cannot be read."""
    return suffix_of(path) in SUFFIXES or path == "." or path.endswith("/")


def _wrapper(files: Sequence[File], reading: Reading) -> str:
    """The outermost folders that hold nothing but one folder of folders, each with its ``/``; none that is a split."""
    wrapper = ""
    steps = [file.steps for file in files]
    while True:
        first, *others = {step[0] for step in steps}
        if others or any(len(step) < 3 for step in steps) or (split_of(first) and reading != "classes"):
            return wrapper
        wrapper += f"{first}/"
        steps = [step[1:] for step in steps]


def _arrange(files: Sequence[File], skipped: Skipped, reading: Reading) -> dict[str, _Place]:
    """The place of each file, by its path; reports the files that have none."""
    splits = _splits(files, skipped, reading)
    doubled = {first for first in splits if _is_doubled(first, files)}
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
            below = folders[2 if folders[0] in doubled else 1 :]
            places[file.path] = _Place(splits[folders[0]], below[0] if below else None)
    for first, count in sorted(outside.items()):
        skipped.notes.append((f"{first}/", f"{count} images in no split, beside {_listed(splits)}"))
    return _with_classes(places, skipped)


def _splits(files: Sequence[File], skipped: Skipped, reading: Reading) -> dict[str, str]:
    """The first-level folders that are splits, each with its split; none if they are classes.

    Raises:
        DataError: If splits and classes cannot be told apart.
    """
    if reading == "classes":
        return {}
    firsts = {file.steps[0] for file in files if len(file.steps) > 1}
    splits = find_splits(firsts)
    if not splits:
        if reading == "splits":
            raise DataError(f"{skipped.request.spec}: no folder has the name of a split, such as train/ and test/")
        _refuse_splits_below(files, skipped.request)
        return {}
    counts = Counter(splits.values())
    twice = [first for first in splits if counts[splits[first]] > 1]
    if twice:
        why = f"{_listed(twice[:4])} would be one split: rename or move all but one"
    elif "train" not in counts:
        why = f"{_listed(splits)} without train/: a tree with splits needs a train/"
    elif reading == "auto" and len(counts) == 1 and len(firsts) > 1 and _look_alike(files):
        why = f"{_listed(splits)} may be a split or a class beside {_listed(firsts - splits.keys())}"
        why += f"; read it alone with {_other('folder-splits', skipped.request)}"
    else:
        renamed = ", ".join(f"{first}/ as {split}" for first, split in sorted(splits.items()) if not is_usual(first))
        if renamed:
            skipped.remarks.append(f"folders are read as splits: {renamed}")
        return splits
    raise DataError(
        f"{skipped.request.spec}: {why}; read every folder as a class with {_other('folder-classes', skipped.request)}"
    )


def _look_alike(files: Sequence[File]) -> bool:
    """Whether images lie right in each first-level folder, as they do in classes."""
    direct = {file.steps[0] for file in files if len(file.steps) == 2}
    return all(file.steps[0] in direct for file in files if len(file.steps) > 1)


def _refuse_splits_below(files: Sequence[File], request: Request) -> None:
    """Refuse a tree whose classes hold train/ and test/."""
    below: dict[str, set[str]] = {}
    for file in files:
        if len(file.steps) > 2:
            below.setdefault(file.steps[0], set()).add(file.steps[1])
    for first, seconds in sorted(below.items()):
        splits = {second: split for second in seconds if (split := split_of(second))}
        if {"train"} < set(splits.values()):
            some = ", ".join(f"{first}/{second}/" for second in sorted(splits))
            raise DataError(
                f"{request.spec}: {some} are splits below a class: put them first, as in train/{first}/; or read "
                f"all images of a first folder as one class with {_other('folder-classes', request)}"
            )


def _is_doubled(first: str, files: Sequence[File]) -> bool:
    """Whether a split folder holds nothing but a folder of the same meaning, as in seg_train/seg_train/."""
    below = {file.steps[1:-1][:1] for file in files if file.steps[0] == first}
    names = {step[0] for step in below if step}
    same = {name for name in names if name.casefold() == first.casefold() or split_of(name) == (split_of(first) or "")}
    return len(below) == len(names) == len(same) == 1


def _with_listed_labels(
    places: dict[str, _Place], files: Sequence[File], tree: Tree, wrapper: str, skipped: Skipped
) -> dict[str, _Place]:
    """The places with the labels of dataset.json, or without labels where folders only number the images."""
    listed = next((file for file in tree.files if file.path == wrapper + NAME), None)
    labels = None if listed is None else read_labels(tree, listed, places, skipped.request.spec)
    if labels is not None:
        skipped.remarks.append(f"the classes are those of {NAME}, not the folders")
    elif are_shards(files):
        firsts = sorted({file.steps[0] for file in files})
        skipped.guesses.append(
            f"{_listed(firsts[:3])}{', …' if len(firsts) > 3 else ''} number the images and are taken for no classes; "
            f"read each as a class with {_other('folder-classes', skipped.request)}"
        )
        labels = dict.fromkeys(places)
    return places if labels is None else {path: replace(place, label=labels[path]) for path, place in places.items()}


def _with_classes(places: dict[str, _Place], skipped: Skipped) -> dict[str, _Place]:
    """The places without images beside class folders; refuses classes that the training part does not have."""
    spec = skipped.request.spec
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


def _other(prefix: str, request: Request) -> str:
    """The data spec of the same place with another prefix."""
    return f"{prefix}:{request.spec.partition(':')[2]}"


def _listed(folders: Iterable[str]) -> str:
    return ", ".join(f"{folder}/" for folder in sorted(folders))
