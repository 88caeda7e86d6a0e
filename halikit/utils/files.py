"""Writing files so that nothing half-written ever replaces a good one."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from halikit.errors import InputError, ResourceError

__all__ = ["TEMPORARY", "read_bounded", "sync_directory", "write_atomically", "write_synced", "writing"]

# How names of files end that are not whole yet, or no longer wanted; they begin with a dot.
TEMPORARY = ".tmp"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write to a temporary sibling, sync, and rename over ``path``.

    Args:
        path: In an existing directory.
        content: Text is written as UTF-8.

    Raises:
        ResourceError: If the disk is full.
        InputError: If the directory is missing or cannot be written to.
    """
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    temporary = None
    with writing(path, len(content)):
        try:
            descriptor, temporary = tempfile.mkstemp(TEMPORARY, f".{path.name}.", path.parent)
            with os.fdopen(descriptor, "wb") as file:
                _write(file.fileno(), content)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until the disk has it.

    Raises:
        ResourceError: If the disk is full.
        InputError: If it exists, or its directory cannot be written to.
    """
    with writing(path, len(content)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _write(descriptor, content)
        finally:
            os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Wait until the disk has the names in a directory; where directories cannot be synced, nothing happens."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems refuse it.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a file of at most ``limit`` bytes; special files are not read.

    Raises:
        ValueError: If it is longer, or no regular file.
        OSError: If it cannot be read.
    """
    # A pipe would block when it is opened.
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is longer than {limit:,} bytes")
    return content


@contextmanager
def writing(path: Path, size: int = 0) -> Iterator[None]:
    """Turn what the system says when ``path`` is written to into errors that name it.

    Raises:
        ResourceError: If the disk is full; the message has ``size``, in bytes.
        InputError: If it cannot be written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no space left to write {path} ({size / 2**20:.1f} MiB)") from None
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def _write(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)


def _umask() -> int:
    # The only way to read it is to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
