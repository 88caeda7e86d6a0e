"""A tree of files: a directory, a zip or a tar (plain, gz, bz2, xz), read in place and through one interface.

| what is in the tree | what happens to it |
|---|---|
| hidden files and folders, ``__MACOSX`` | ignored |
| a link to a folder | followed, unless the folder has been read under another name; so cycles end |
| a broken link, or a pipe or device with the name of an image | refused |
| a folder or file without permission to read | refused |
| a link in an archive to a file of the archive | read, as the file; a link to a folder of the archive is ignored |
| another link or a sparse file in an archive, an encrypted member | refused |
| a member whose name leads out of the archive | refused; nothing is ever extracted to disk |
| the same name twice in one archive | the last one counts |
| an archive that is cut off or damaged | an error, even if a part of it could be read |
| names | any Unicode, compared by code points, folder by folder |
"""

from __future__ import annotations

import heapq
import lzma
import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tarfile import EmptyHeaderError, InvalidHeaderError, ReadError, TruncatedHeaderError  # type: ignore[attr-defined]
from typing import IO, Any, Self

from halikit.data.dataset import DataError

__all__ = [
    "File",
    "Tree",
    "first_archive",
    "first_names",
    "names",
    "open_directory",
    "open_tree",
    "printable",
    "readable",
    "reading",
    "suffix_of",
]

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_MAX_LINKS, _MAX_TARGET = 40, 4096  # links that one may lead through, and bytes of a target
_UTF8, _UNIX = 0x800, 3  # the flag of a name in a zip, and the number of the system that wrote it
_FIRST = 100  # names that are enough to recognise a data set

# What zipfile, tarfile and gzip raise on damaged files.
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, ValueError, NotImplementedError, RuntimeError, OverflowError),
)


@dataclass(frozen=True)
class File:
    """A file of a tree.

    Args:
        path: Path below the root, with ``/`` between the folders.
        nbytes: Length in bytes.
        handle: What the tree opens the file by.
        offset: Position in the archive.
    """

    path: str
    nbytes: int
    handle: Any
    offset: int = 0

    @property
    def steps(self) -> tuple[str, ...]:
        """The folders of the path, and the name."""
        return tuple(self.path.split("/"))

    @property
    def name(self) -> str:
        """The name without its folders."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Tree:
    """The files below one root.

    Args:
        root: The directory or archive.
        files: Its files, in the order of their paths.
        refused: Files that cannot be used, as (path, reason).
        open_handle: Opens a file by its handle.
        is_archive: Whether it is an archive. Its files must be read by one thread, one after the other.
        close: Closes the archive.
    """

    root: Path
    files: tuple[File, ...]
    refused: tuple[tuple[str, str], ...]
    open_handle: Callable[[Any], IO[bytes] | None]
    is_archive: bool = False
    close: Callable[[], None] = lambda: None

    def open(self, file: File) -> IO[bytes]:
        """Open one of :attr:`files`; of a directory, in any thread.

        Raises:
            OSError: If the file cannot be opened.
        """
        stream = self.open_handle(file.handle)
        assert stream is not None  # tarfile gives none for folders and the like, which are not listed
        return stream

    def read(self, file: File) -> bytes:
        """The bytes of one file, at most as many as its listed length.

        Raises:
            OSError: If a file of a directory cannot be read.
            DataError: If the archive is damaged there.
        """
        with reading(str(self.root)) if self.is_archive else nullcontext(), self.open(file) as stream:
            return stream.read(file.nbytes)

    def head(self, file: File, nbytes: int) -> bytes:
        """The first bytes of a file; none if it cannot be read."""
        try:
            with self.open(file) as stream:
                return stream.read(nbytes)
        except _DAMAGE:
            return b""

    def in_storage_order(self, files: Iterable[File]) -> list[File]:
        """``files`` in the order in which they are read fastest."""
        return sorted(files, key=lambda file: file.offset)

    def full_path(self, file: File) -> str:
        """The path of a file including that of the tree, for messages."""
        return printable(str(self.root / file.path))

    def find(
        self, required: Collection[str], optional: Collection[str] = (), *, spec: str, hint: str = ""
    ) -> dict[str, File]:
        """Files by name, in any folder of the tree.

        Args:
            required: Names of files that must be there.
            optional: Names of files that may be missing.
            spec: The data spec, for the message.
            hint: What the message about missing files says at its end.

        Raises:
            DataError: If a required file is missing, or a name is there twice.
        """
        found: dict[str, File] = {}
        for file in self.files:
            if file.name in found:
                raise DataError(f"{spec}: {file.name} is here twice, in {found[file.name].path} and {file.path}")
            if file.name in required or file.name in optional:
                found[file.name] = file
        missing = [name for name in required if name not in found]
        if missing:
            raise DataError(f"{spec}: no {', '.join(missing)} here{hint}")
        return found

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_tree(path: Path, suffixes: Container[str] | None = None) -> Tree:
    """List the files below ``path``, a directory or an archive.

    Args:
        path: The root. The kind of an archive is read from its content.
        suffixes: Suffixes of the files to list (see :func:`suffix_of`); by default all files.

    Raises:
        DataError: If it is neither, or is damaged.
    """
    if path.is_dir():
        return open_directory(path, suffixes)
    with reading(str(path)):
        if zipfile.is_zipfile(path):
            archive = zipfile.ZipFile(path)
            return _list_archive(path, archive, _zip_members(archive), archive.open, suffixes)
        if path.is_file() and tarfile.is_tarfile(path):
            tar = tarfile.open(path, tarinfo=_TarMember)  # noqa: SIM115 (closed by Tree.close)
            return _list_archive(path, tar, _tar_members(tar), tar.extractfile, suffixes)
    if path.name.lower().endswith(ARCHIVE_SUFFIXES):
        raise DataError(f"{path} has the name of an archive but is not one, or is damaged; is the file complete?")
    raise DataError(
        f"{path} is neither a directory nor an archive (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz)"
        "; tables and arrays are read from .npy, .npz and .safetensors"
    )


def open_directory(root: Path, suffixes: Container[str] | None = None, *, deep: bool = True) -> Tree:
    """List the files of a directory.

    Args:
        root: The directory. If it does not exist, there are no files.
        suffixes: As in :func:`open_tree`.
        deep: Whether the folders below it are listed too.
    """
    files: list[File] = []
    refused: list[tuple[str, str]] = []
    for path, entry in _entries(root, deep, refused):
        if suffixes is not None and suffix_of(path) not in suffixes:
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
    return Tree(root, _in_order(files), tuple(sorted(refused)), lambda path: open(path, "rb"))


def _entries(root: Path, deep: bool, refused: list[tuple[str, str]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything that is not a folder, with its path below the root; appends unreadable folders to ``refused``.

    Linked folders come last, so that a folder that is linked to and lies in the tree keeps its own name.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [(str(root), "")], list[tuple[str, str]]()
    while folders or links:
        folder, prefix = folders.pop() if folders else heapq.heappop(links)
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = list(os.scandir(folder))
        except OSError as error:
            refused.append((prefix or ".", error.strerror or str(error)))
            continue
        for entry in entries:
            if _is_ignored(entry.name):
                continue
            if not _is_folder(entry):
                yield prefix + entry.name, entry
            elif deep and entry.is_symlink():
                heapq.heappush(links, (entry.path, f"{prefix}{entry.name}/"))
            elif deep:
                folders.append((entry.path, f"{prefix}{entry.name}/"))


def _list_archive(
    root: Path,
    archive: zipfile.ZipFile | tarfile.TarFile,
    members: Iterable[tuple[File, str | None, str | None]],
    open_handle: Callable[[Any], IO[bytes] | None],
    suffixes: Container[str] | None,
) -> Tree:
    """The tree of an archive.

    ``members`` gives each file, the reason why it is refused, if there is one, and of a symbolic link its target.
    """
    found: dict[str, File | str] = {}  # or the reason
    links: dict[str, str] = {}
    try:
        for file, reason, target in members:
            steps = [step for step in file.steps if step not in ("", ".")]
            if not steps:
                continue
            path = "/".join(steps)
            if ".." in steps or file.path.startswith("/"):
                reason, target = "its name leads out of the archive", None
            found.pop(path, None)
            links.pop(path, None)
            if target is None:
                found[path] = reason or replace(file, path=path)
            else:
                links[path] = target
    except BaseException:
        archive.close()
        raise
    _follow(links, found)
    wanted = {
        path: file
        for path, file in found.items()
        if (suffixes is None or suffix_of(path) in suffixes) and not any(map(_is_hidden, path.split("/")))
    }
    files = _in_order(file for file in wanted.values() if isinstance(file, File))
    refused = tuple(sorted((path, reason) for path, reason in wanted.items() if isinstance(reason, str)))
    return Tree(root, files, refused, open_handle, True, archive.close)


def _follow(links: Mapping[str, str], found: dict[str, File | str]) -> None:
    """Add the symbolic links of an archive to ``found``: the files that they lead to, or a reason."""
    folders = {"/".join(steps[:n]) for steps in (path.split("/") for path in found) for n in range(1, len(steps))}
    reached: dict[str, File | str] = {}
    for path in links:
        end = path
        for _ in range(_MAX_LINKS):
            if end not in links:
                break
            # Without the archive's own root, so that steps above it remain visible.
            end = posixpath.normpath(posixpath.join(posixpath.dirname(end), links[end]))
        file = found.get(end)
        if isinstance(file, File):
            reached[path] = replace(file, path=path)
        elif end not in folders:
            reached[path] = "a link to a file that is not in the archive"
    found.update(reached)


def _in_order(files: Iterable[File]) -> tuple[File, ...]:
    return tuple(sorted(files, key=lambda file: file.steps))


def _zip_members(archive: zipfile.ZipFile) -> Iterator[tuple[File, str | None, str | None]]:
    for info in archive.infolist():
        if info.is_dir():
            continue
        reason = "encrypted" if info.flag_bits & 1 else None
        target = None
        if reason is None and stat.S_ISLNK(info.external_attr >> 16):
            if info.file_size > _MAX_TARGET:
                reason = "a link with a target that is too long"
            else:
                target = archive.read(info).decode("utf-8", "surrogateescape")
        name = _zip_name(info).replace("\\", "/")
        yield File(name, info.file_size, info, info.header_offset), reason, target


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name of a member, as it would be in a directory.

    Programs on Unix write the bytes of a name without saying that they are UTF-8; zipfile takes them for code page 437.
    """
    if info.flag_bits & _UTF8 or info.filename.isascii():
        return info.filename
    content = info.filename.encode("cp437", "replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return os.fsdecode(content) if info.create_system == _UNIX else info.filename


def _tar_members(archive: tarfile.TarFile) -> Iterator[tuple[File, str | None, str | None]]:
    linked: dict[str, tarfile.TarInfo] = {}  # what a later hard link to a name means
    for info in archive:
        if info.isdir():
            continue
        name = posixpath.normpath(info.name)
        member = linked.get(posixpath.normpath(info.linkname)) if info.islnk() else info
        if info.issym():
            yield File(info.name, 0, info, info.offset), None, info.linkname
        elif member is None:
            yield File(info.name, 0, info, info.offset), "a hard link to a file that is not in the archive", None
        else:
            linked[name] = member
            regular = member.isreg() and not member.issparse()
            reason = None if regular else "a special file in an archive"
            yield File(info.name, member.size, member, member.offset), reason, None


class _TarMember(tarfile.TarInfo):
    """A member that must be followed by another member or by the end marker of the archive.

    tarfile itself takes everything that it cannot read for the end, so it would accept an archive that is cut off.
    """

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        """The next member; at the end marker, the error by which tarfile ends."""
        try:
            return super().fromtarfile(tarfile)
        except (EmptyHeaderError, TruncatedHeaderError, InvalidHeaderError) as error:
            raise ReadError(f"it has no end marker ({error}); is the file complete?") from error


def names(path: Path) -> Iterator[str]:
    """The names of all files in an archive or below a directory, in any order, also of files that cannot be used.

    Raises:
        DataError: If it is neither, or is damaged.
    """
    if path.is_file() and not zipfile.is_zipfile(path) and tarfile.is_tarfile(path):
        with reading(str(path)), tarfile.open(path) as tar:
            yield from (member.name for member in tar)  # not sorted, so that the first names are found quickly
    else:
        with open_tree(path) as tree:
            yield from (file.path for file in tree.files)
            yield from (refused for refused, _ in tree.refused)


def first_names(path: Path) -> set[str]:
    """Some names of files and folders: in a directory and its folders, or at the beginning of an archive.

    Empty for other files, and for an archive that cannot be read.
    """
    if path.is_dir():
        folders = [path, *(child for child in path.glob("*") if child.is_dir())]
        return {child.name for folder in folders for child in islice(folder.glob("*"), _FIRST)}
    try:
        return {step for name in islice(names(path), _FIRST) for step in name.split("/")}
    except _DAMAGE:
        return set()


def first_archive(folder: Path) -> Path | None:
    """The first archive in a directory, by name."""
    return min((child for child in folder.glob("*") if child.name.lower().endswith(ARCHIVE_SUFFIXES)), default=None)


def suffix_of(name: str) -> str:
    """The last dot of a file's name and what follows it, in lower case; empty without a dot."""
    return os.path.splitext(name)[1].lower()


def readable(name: str) -> str:
    """A name as text: bytes that are no UTF-8, as those of old archives and Windows shares, are taken for Latin-1."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(name).decode("latin-1")
    return name


def printable(path: str) -> str:
    """``path`` on one line, with escapes for control characters and undecodable bytes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in path)


@contextmanager
def reading(name: str, errors: tuple[type[Exception], ...] = _DAMAGE) -> Iterator[None]:
    """Turn the errors of a damaged file into a DataError of one line.

    Args:
        name: Name of the file, for the message.
        errors: What a damaged file raises.

    Raises:
        DataError: If one of ``errors`` is raised.
    """
    try:
        yield
    except DataError:
        raise
    except EOFError:
        raise DataError(f"{name}: cut off within its compressed data; is the file complete?") from None
    except errors as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise DataError(f"{name} cannot be read: {printable(reason[:200])}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to a place without permission
        return False


def _is_hidden(step: str) -> bool:
    return step != ".." and _is_ignored(step)


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
