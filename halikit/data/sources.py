"""Where data come from: one entry here and one module each.

To add a source, write a module with a function from a :class:`~halikit.data.request.Request` to a
:class:`~halikit.data.DataSet`, and enter it below. Whatever is slow to import, its function imports itself.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from halikit.data.dataset import DataError, DataSet
from halikit.data.digits import load_digits
from halikit.data.folder import has_images, load_folder
from halikit.data.idx import has_idx, load_mnist
from halikit.data.request import Request

__all__ = ["SOURCES", "Source", "load", "recognise"]


@dataclass(frozen=True)
class Source:
    """A kind of data.

    Args:
        summary: What it reads, in one line.
        load: Reads it.
        recognises: Whether a directory or archive is of this kind; ``None`` for a source that takes no place.
    """

    summary: str
    load: Callable[[Request], DataSet]
    recognises: Callable[[Path], bool] | None = None


# In the order in which a bare path is tried.
SOURCES: dict[str, Source] = {
    "digits": Source("scikit-learn's handwritten digits, 8×8: nothing to download", load_digits),
    "mnist": Source("MNIST and look-alikes from the official IDX files, gzipped or not", load_mnist, has_idx),
    "folder": Source("any tree of images, or a .zip or .tar of one", load_folder, has_images),
}


def load(
    spec: str,
    *,
    size: int | None = None,
    strict: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataSet:
    """Read a data set into memory.

    Args:
        spec: ``digits``, ``prefix:PLACE`` with a prefix of :data:`SOURCES`, or a bare path, which is recognised.
        size: Side of the square that images are cropped and resized to; ``None`` keeps them as they are.
        strict: Refuse any file that cannot be used, where a few would otherwise be skipped.
        on_progress: Called with (images done, images in all) while reading.

    Raises:
        DataError: In a line or two: what is wrong, where, and what would be right.

    Example:
        >>> digits = load("digits")
        >>> digits.shape, len(digits.train), len(digits.held_out)
        ((1, 8, 8), 1500, 297)
    """
    spec = recognise(spec)
    request = Request(spec, size=size, strict=strict, on_progress=on_progress)
    return SOURCES[spec.partition(":")[0]].load(request)


def recognise(spec: str) -> str:
    """The data spec with its prefix: as it was, or found by what lies at a bare path.

    Raises:
        DataError: If the prefix is unknown (naming the nearest), or nothing usable lies at the path.

    Example:
        >>> recognise("digits")
        'digits'
    """
    prefix, colon, place = spec.partition(":")
    if prefix in SOURCES:
        placed = SOURCES[prefix].recognises is not None
        if placed and place:
            return spec
        if not placed and not colon:
            return spec
        if colon:
            raise DataError(f"{spec}: write {prefix}:PLACE" if placed else f"{spec}: {prefix} takes no place")
    path = Path(spec).expanduser()
    if spec and path.exists():
        for name, source in SOURCES.items():
            if source.recognises is not None and source.recognises(path):
                return f"{name}:{spec}"
        raise DataError(f"{spec}: neither IDX files nor images here; say what it is with {_prefixes()}")
    if prefix in SOURCES:
        raise DataError(f"{spec}: write {prefix}:PLACE")
    if re.fullmatch(r"[A-Za-z][\w+.-]*", prefix) and (colon or difflib.get_close_matches(spec, SOURCES)):
        nearest = difflib.get_close_matches(prefix.lower(), SOURCES, n=1, cutoff=0.5)
        guess = f"did you mean {nearest[0]!r}? There" if nearest else "there"
        raise DataError(f"unknown data source {prefix!r}: {guess} are {_prefixes()}")
    raise DataError(f"{spec!r}: no such file or directory, and no data source; there are {_prefixes()}")


def _prefixes() -> str:
    return ", ".join(name if source.recognises is None else f"{name}:PLACE" for name, source in SOURCES.items())
