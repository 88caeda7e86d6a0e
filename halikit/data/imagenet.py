"""``imagenet:``: ``train/`` and ``val/`` with a folder per class, named by its WordNet id; 128×128 unless told.

ImageNet's own test part has no labels: as usual its validation part is what one reports on, and it is never trained on.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

from halikit.data.dataset import DataError, DataSet
from halikit.data.folder import load_folder
from halikit.data.listing import Listing
from halikit.data.request import Request
from halikit.data.tree import names, printable

__all__ = ["has_imagenet", "load_imagenet"]

SIZE = 128

_CLASS = re.compile(r"n\d{8}")
_MEMBER = re.compile(r"(?:.*/)?train/n\d{8}/[^/]+")


def has_imagenet(path: Path) -> bool:
    """Whether a directory, or an archive by its first files, holds folders of ImageNet's classes below train/."""
    if path.is_dir():
        train = path / "train"
        return train.is_dir() and any(_CLASS.fullmatch(child.name) for child in train.iterdir())
    return any(_MEMBER.fullmatch(name) for name in islice(names(path), 100))


def load_imagenet(request: Request) -> DataSet:
    """Read the class folders; see :func:`halikit.data.folder.load_folder`.

    Returns:
        Images ``(3, 128, 128)`` uint8, or of the size asked for; the classes are WordNet ids.

    Raises:
        DataError: If train/ or val/ is missing, or a folder is named by no WordNet id.
    """

    def accept(listing: Listing) -> None:
        if listing.parts.keys() != {"train", "validation"}:
            raise DataError(f"{request.spec}: ImageNet is train/ and val/, and nothing else, with class folders below")
        flat = next((name for name, part in listing.parts.items() if any(e.label is None for e in part)), None)
        if flat is not None:
            folder = {"validation": "val"}.get(flat, flat)
            raise DataError(f"{request.spec}: the images of {folder}/ lie in no class folders; sort them into some")
        odd = next((name for name in listing.classes if not _CLASS.fullmatch(name)), None)
        if odd is not None:
            raise DataError(f"{request.spec}: class folders are WordNet ids such as n01440764, not {printable(odd)!r}")

    return load_folder(replace(request, size=request.size or SIZE), accept)
