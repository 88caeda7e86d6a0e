"""``imagenet:``: ``train/`` and ``val/`` with one folder per class, named by its WordNet id; 128×128 by default.

ImageNet's own test part has no labels. As usual, results are reported on the validation part, which is not trained on.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

from halikit.data.dataset import DataError, DataSet, Request
from halikit.data.folder import load_folder
from halikit.data.listing import Listing
from halikit.data.tree import names, printable

__all__ = ["has_imagenet", "load_imagenet"]

SIZE = 128

_CLASS = re.compile(r"n\d{8}")
_MEMBER = re.compile(r"(?:.*/)?train/n\d{8}/[^/]+")


def has_imagenet(path: Path) -> bool:
    """Whether a directory, or an archive among its first files, has folders of ImageNet's classes below train/."""
    if path.is_dir():
        train = path / "train"
        return train.is_dir() and any(_CLASS.fullmatch(child.name) for child in train.iterdir())
    return any(map(_MEMBER.fullmatch, islice(names(path), 100)))


def load_imagenet(request: Request) -> DataSet:
    """Read the class folders; see :func:`halikit.data.folder.load_folder`.

    Returns:
        Images ``(3, 128, 128)`` uint8, or of the requested size; the classes are WordNet ids.

    Raises:
        DataError: If train/ or val/ is missing, or the name of a folder is not a WordNet id.
    """

    def check(listing: Listing) -> None:
        if listing.parts.keys() != {"train", "validation"}:
            raise DataError(f"{request.spec}: ImageNet has train/ and val/ with class folders, and nothing else")
        for part, folder in (("train", "train"), ("validation", "val")):
            if any(entry.label is None for entry in listing.parts[part]):
                raise DataError(f"{request.spec}: the images of {folder}/ are not in class folders; sort them first")
        for name in listing.classes:
            if not _CLASS.fullmatch(name):
                raise DataError(
                    f"{request.spec}: class folders are WordNet ids such as n01440764, not {printable(name)!r}"
                )

    return load_folder(replace(request, size=request.size or SIZE), check)
