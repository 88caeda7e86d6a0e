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

from halikit.data.array import has_array, load_array
from halikit.data.celeba import has_celeba, load_celeba
from halikit.data.cifar import has_cifar10, has_cifar100, load_cifar10, load_cifar100
from halikit.data.dataset import DataError, DataSet
from halikit.data.digits import load_digits
from halikit.data.folder import has_images, load_folder
from halikit.data.idx import has_idx, load_mnist
from halikit.data.imagenet import has_imagenet, load_imagenet
from halikit.data.pack import is_pack, load_pack, packing
from halikit.data.request import Request
from halikit.data.svhn import has_svhn, load_svhn, load_svhn_extra
from halikit.data.tree import archives

__all__ = ["SOURCES", "Source", "load", "pack", "recognise"]


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
    "pack": Source("a file made by halikit data pack", load_pack, is_pack),
    "array": Source("arrays in .npy, .npz or .safetensors", load_array, has_array),
    "mnist": Source("MNIST and look-alikes from the official IDX files, gzipped or not", load_mnist, has_idx),
    "cifar10": Source("CIFAR-10, the binary version, as a folder or .tar.gz", load_cifar10, has_cifar10),
    "cifar100": Source("CIFAR-100, the binary version, as a folder or .tar.gz", load_cifar100, has_cifar100),
    "svhn": Source("SVHN's cropped digits, train_32x32.mat and test_32x32.mat", load_svhn, has_svhn),
    "svhn-extra": Source("the same with extra_32x32.mat to train on as well", load_svhn_extra, has_svhn),
    "celeba": Source("aligned CelebA faces with their attributes, as a folder, .zip or .tar", load_celeba, has_celeba),
    "imagenet": Source("ImageNet, train/ and val/ with class folders, at 128×128", load_imagenet, has_imagenet),
    "folder": Source("any tree of images, or a .zip or .tar of one", load_folder, has_images),
}


def load(
    spec: str,
    *,
    size: int | None = None,
    strict: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataSet:
    """Read a data set: into memory, or, of a pack, no more than is asked for.

    Args:
        spec: ``digits``, ``prefix:PLACE`` with a prefix of :data:`SOURCES`, or a bare path, which is recognised.
        size: Side of the square that images are cropped and resized to; ``None`` keeps them as they are.
        strict: Refuse any file that cannot be used, where a few would otherwise be skipped; verify checksums.
        on_progress: Called with (images done, images in all) while reading.

    Raises:
        DataError: In a line or two: what is wrong, where, and what would be right.

    Example:
        >>> digits = load("digits")
        >>> digits.shape, len(digits.train), len(digits.held_out)
        ((1, 8, 8), 1500, 297)
    """
    return _load(Request(recognise(spec), size=size, strict=strict, on_progress=on_progress))


def pack(
    spec: str,
    out: Path | str,
    *,
    size: int | None = None,
    strict: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataSet:
    """Decode, crop and resize a data set once, into one file; images go there as they are decoded, not into memory.

    Args:
        spec: As :func:`load` takes it.
        out: The file; it appears when it is complete, in place of an older pack of that name.
        size: As in :func:`load`.
        strict: As in :func:`load`.
        on_progress: As in :func:`load`.

    Returns:
        The pack, opened.

    Raises:
        DataError: If the data cannot be used.
        InputError: If the file cannot be written.
        ResourceError: If the disk is full.
    """
    spec, out = recognise(spec), Path(out)
    with packing(out) as file:
        request = Request(spec, size=size, strict=strict, on_progress=on_progress, canvas=file.allocate)
        file.finish(_load(request), size)
    return load(f"pack:{out}")


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
        if owner := _owner(path):
            return f"{owner}:{spec}"
        inside = next(iter(archives(path)), None) if path.is_dir() else None
        if inside is not None:
            raise DataError(f"{spec}: no data set here that is known; is it the archive in it, {path / inside.name}?")
        raise DataError(f"{spec}: no data set here that is known; say what it is with {_prefixes()}")
    if prefix in SOURCES:
        raise DataError(f"{spec}: write {prefix}:PLACE")
    if re.fullmatch(r"[A-Za-z][\w+.-]*", prefix) and (colon or difflib.get_close_matches(spec, SOURCES)):
        nearest = difflib.get_close_matches(prefix.lower(), SOURCES, n=1, cutoff=0.5)
        guess = f"did you mean {nearest[0]!r}? There" if nearest else "there"
        raise DataError(f"unknown data source {prefix!r}: {guess} are {_prefixes()}")
    raise DataError(f"{spec!r}: no such file or directory, and no data source; there are {_prefixes()}")


def _load(request: Request) -> DataSet:
    """Ask the source; if nothing of its own is there, say whose files these are."""
    prefix, _, place = request.spec.partition(":")
    try:
        return SOURCES[prefix].load(request)
    except DataError as error:
        other = _other(prefix, Path(place).expanduser())
        if other is None:
            raise
        message = f"{request.spec}: these are not files of {prefix}: but of {other}: use {other}:{place}"
        raise DataError(message) from error


def _other(prefix: str, path: Path) -> str | None:
    """The source that recognises what lies at ``path`` if the one that was asked for does not."""
    recognises = SOURCES[prefix].recognises
    try:
        return None if recognises is None or recognises(path) else _owner(path)
    except (DataError, OSError):  # nothing there, or nothing that can be read
        return None


def _owner(path: Path) -> str | None:
    """The first source that recognises what lies at ``path``."""
    return next((name for name, source in SOURCES.items() if source.recognises and source.recognises(path)), None)


def _prefixes() -> str:
    return ", ".join(name if source.recognises is None else f"{name}:PLACE" for name, source in SOURCES.items())
