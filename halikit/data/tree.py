"""A tree of files: a directory, a zip or a tar (plain, gz, bz2, xz), read in place and through one interface.

| what is met | what becomes of it |
|---|---|
| hidden files and folders, ``__MACOSX`` | ignored |
| a link to a folder | followed, unless the tree has read that folder under its own name: so loops end |
| a link that leads nowhere, a pipe or device under an image's name | refused |
| a folder or file that may not be read | refused |
| a link or sparse file in an archive, an encrypted member | refused |
| a member whose name would leave the archive | refused; nothing is ever extracted to disk |
| a name twice in one archive | the last one counts |
| an archive that is cut off or damaged | an error, however much of it could be read |
| names | any Unicode; compared as they are, in order of code points, folder by folder |
"""

from __future__ import annotations

import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tarfile import EmptyHeaderError, InvalidHeaderError, ReadError, TruncatedHeaderError  # type: ignore[attr-defined]
from typing import IO, Any, Self

from halikit.data.dataset import DataError

__all__ = [
    "DAMAGE",
    "Directory",
    "File",
    "Tar",
    "Tree",
    "Zip",
    "archives",
    "glance",
    "names",
    "open_tree",
    "printable",
    "suffix_of",
]

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_GLANCE = 100

# What zipfile and tarfile raise on files that are not what they claim.
DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, ValueError, NotImplementedError, RuntimeError, OverflowError),
)


@dataclass(frozen=True)
class File:
    """A file of a tree.

    Args:
        path: Where it is below the root, with ``/`` between the parts.
        size: Its length in bytes.
        handle: What the tree opens it by.
    """

    path: str
    size: int
    handle: Any

    @property
    def parts(self) -> tuple[str, ...]:
        """The path's components, the name of the file last."""
        return tuple(self.path.split("/"))

    @property
    def suffix(self) -> str:
        """See :func:`suffix_of`."""
        return suffix_of(self.path)


class Tree(ABC):
    """The files below one root, in the order of their paths.

    Args:
        root: The directory or archive.
        wanted: Which files to list, by suffix (see :attr:`File.suffix`); all by default.
    """

    # Whether one thread has to read the files one after the other, in the order of `in_storage_order`.
    sequential: bool

    def __init__(self, root: Path, wanted: Callable[[str], bool] = lambda suffix: True) -> None:
        self.root = root
        self.files: tuple[File, ...] = ()
        self.refused: tuple[tuple[str, str], ...] = ()
        self._wanted = wanted

    @abstractmethod
    def open(self, file: File) -> IO[bytes]:
        """Open one of :attr:`files`."""

    def in_storage_order(self, files: Iterable[File]) -> list[File]:
        """``files`` in the order in which they are read fastest."""
        return list(files)

    def close(self) -> None:  # noqa: B027 (a directory holds nothing open)
        """Let go of the root."""

    def read(self, file: File) -> bytes:
        """The bytes of one file, never more than its listed size.

        Raises:
            OSError: If it cannot be read.
        """
        with self.open(file) as stream:
            return stream.read(file.size)

    def _keep(self, files: Iterable[File], refused: Iterable[tuple[str, str]]) -> None:
        self.files = tuple(sorted(files, key=lambda file: file.parts))
        self.refused = tuple(sorted(refused))

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Directory(Tree):
    """A directory on disk, with the folders below it unless ``deep`` is false."""

    sequential = False

    def __init__(self, root: Path, wanted: Callable[[str], bool] = lambda suffix: True, *, deep: bool = True) -> None:
        super().__init__(root, wanted)
        files: list[File] = []
        refused: list[tuple[str, str]] = []
        seen: set[tuple[int, int]] = set()
        # Real folders before linked ones: whatever is linked keeps its own name where it has one in the tree.
        pending, linked = [(str(root), "")], list[tuple[str, str]]()
        while pending or linked:
            if not pending:
                linked.sort(reverse=True)
                pending.append(linked.pop())
            folder, prefix = pending.pop()
            try:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
            except OSError as error:
                refused.append((prefix or ".", error.strerror or str(error)))
                continue
            for entry in entries:
                path = prefix + entry.name
                if _ignored(entry.name):
                    continue
                if _is_folder(entry):
                    if deep:
                        (linked if entry.is_symlink() else pending).append((entry.path, f"{path}/"))
                    continue
                if not wanted(suffix_of(path)):
                    continue
                try:
                    status = entry.stat()
                except OSError as error:
                    refused.append((path, error.strerror or str(error)))
                    continue
                if stat.S_ISREG(status.st_mode):
                    files.append(File(path, status.st_size, entry.path))
                else:
                    refused.append((path, "not a regular file"))
        self._keep(files, refused)

    def open(self, file: File) -> IO[bytes]:
        """Open one of :attr:`files`; any thread may."""
        return open(file.handle, "rb")


class _Archive(Tree):
    """What zip and tar have in common: members by name, of which those that matter are listed."""

    sequential = True

    @abstractmethod
    def _members(self) -> Iterator[tuple[str, int, Any, str | None]]:
        """(name, size, handle, why it is refused) of each member that is no folder."""

    def _list(self) -> None:
        try:
            self._list_members()
        except BaseException:
            self.close()
            raise

    def _list_members(self) -> None:
        files: dict[str, File] = {}
        refused: dict[str, str] = {}
        for name, size, handle, reason in self._members():
            parts = [part for part in name.split("/") if part not in ("", ".")]
            if not parts or any(_ignored(part) for part in parts if part != ".."):
                continue
            path = "/".join(parts)
            file = File(path, size, handle)
            if not self._wanted(file.suffix):
                continue
            if ".." in parts or name.startswith("/"):
                reason = "its name would leave the archive"
            files.pop(path, None)
            refused.pop(path, None)
            if reason is None:
                files[path] = file
            else:
                refused[path] = reason
        self._keep(files.values(), refused.items())

    def read(self, file: File) -> bytes:
        """The bytes of one file, never more than its listed size.

        Raises:
            DataError: If the archive is damaged there.
        """
        with _reporting(self.root):
            return super().read(file)


class Zip(_Archive):
    """A zip archive."""

    def __init__(self, root: Path, wanted: Callable[[str], bool] = lambda suffix: True) -> None:
        super().__init__(root, wanted)
        with _reporting(root):
            self._zip = zipfile.ZipFile(root)
            self._list()

    def _members(self) -> Iterator[tuple[str, int, Any, str | None]]:
        for info in self._zip.infolist():
            if info.is_dir():
                continue
            reason = None
            if info.flag_bits & 1:
                reason = "encrypted"
            elif stat.S_ISLNK(info.external_attr >> 16):
                reason = "a link in an archive"
            yield info.filename.replace("\\", "/"), info.file_size, info, reason

    def open(self, file: File) -> IO[bytes]:
        """Open one of :attr:`files`."""
        return self._zip.open(file.handle)

    def in_storage_order(self, files: Iterable[File]) -> list[File]:
        """``files`` by where they begin in the archive."""
        return sorted(files, key=lambda file: file.handle.header_offset)

    def close(self) -> None:
        """Close the archive."""
        self._zip.close()


class _Member(tarfile.TarInfo):
    """A member that must be followed by another, or by the archive's end marker.

    tarfile takes whatever it cannot read for the end, and so a cut archive for a whole one.
    """

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        """The next member; the marker still ends the archive."""
        try:
            return super().fromtarfile(tarfile)
        except (EmptyHeaderError, TruncatedHeaderError, InvalidHeaderError) as error:
            raise ReadError(f"no end marker ({error})") from error


class Tar(_Archive):
    """A tar archive, plain or compressed. A compressed one is unpacked twice, to list it and to read it."""

    def __init__(self, root: Path, wanted: Callable[[str], bool] = lambda suffix: True) -> None:
        super().__init__(root, wanted)
        with _reporting(root):
            self._tar = tarfile.open(root, tarinfo=_Member)  # noqa: SIM115 (closed by close)
            self._list()

    def _members(self) -> Iterator[tuple[str, int, Any, str | None]]:
        for info in self._tar:
            if info.isdir():
                continue
            plain = info.isreg() and not info.issparse()
            yield info.name, info.size, info, None if plain else "a link or special file in an archive"

    def open(self, file: File) -> IO[bytes]:
        """Open one of :attr:`files`."""
        stream = self._tar.extractfile(file.handle)
        assert stream is not None  # only regular members are listed
        return stream

    def in_storage_order(self, files: Iterable[File]) -> list[File]:
        """``files`` by where they begin in the archive."""
        return sorted(files, key=lambda file: file.handle.offset)

    def close(self) -> None:
        """Close the archive."""
        self._tar.close()


def open_tree(path: Path, wanted: Callable[[str], bool] = lambda suffix: True) -> Tree:
    """List the files below ``path``, a directory or an archive.

    Args:
        path: The root; what kind of archive it is is read from its content.
        wanted: Which files to list, by suffix (see :attr:`File.suffix`).

    Raises:
        DataError: If it is neither, or is damaged.
    """
    if path.is_dir():
        return Directory(path, wanted)
    with _reporting(path):
        if zipfile.is_zipfile(path):
            return Zip(path, wanted)
        if path.is_file() and tarfile.is_tarfile(path):
            return Tar(path, wanted)
    if path.name.lower().endswith(ARCHIVE_SUFFIXES):
        raise DataError(f"{path} is named as an archive but is none, or is damaged: is it complete?")
    raise DataError(f"{path} is neither a directory nor an archive (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz)")


def names(path: Path) -> Iterator[str]:
    """The names of all files in an archive or below a directory, unchecked and as they come, for a first look.

    Raises:
        DataError: If it is neither, or is damaged.
    """
    if path.is_dir():
        yield from (file.path for file in Directory(path).files)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as members:
            yield from members.namelist()
    elif not path.is_file() or not tarfile.is_tarfile(path):
        open_tree(path)  # which says what is wrong
    else:
        with _reporting(path), tarfile.open(path) as tar:
            yield from (member.name for member in tar)


def archives(folder: Path) -> list[Path]:
    """The archives that lie in a directory, by their names."""
    return sorted(child for child in _children(folder) if child.name.lower().endswith(ARCHIVE_SUFFIXES))


def glance(path: Path) -> set[str]:
    """Names of some files and folders: in a directory and in each folder of it, or those that an archive begins with.

    Empty for a file that is no archive, and for an archive that cannot be read.
    """
    if path.is_dir():
        folders = [path, *sorted(child for child in _children(path) if child.is_dir())]
        return {child.name for folder in folders for child in islice(_children(folder), _GLANCE)}
    try:
        return {part for name in islice(names(path), _GLANCE) for part in name.split("/")}
    except DAMAGE:
        return set()


def suffix_of(name: str) -> str:
    """What follows the last dot of a file's name, with the dot, in lower case; empty without one."""
    return os.path.splitext(name)[1].lower()


def printable(path: str) -> str:
    """``path`` as it can be shown on one line, whatever bytes and control characters its name has."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in path)


@contextmanager
def _reporting(root: Path) -> Iterator[None]:
    """Turn what zipfile and tarfile raise on a damaged archive into one line."""
    try:
        yield
    except DataError:
        raise
    except DAMAGE as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise DataError(f"{root} cannot be read as an archive: {reason}; is it complete?") from error


def _children(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError:
        return


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where one may not look
        return False


def _ignored(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
