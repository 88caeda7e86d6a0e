"""Writes files atomically: an interrupted write never replaces a complete file."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halikit.errors import InputError, ResourceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TEMPORARY", "npy_bytes", "read_bounded", "sync_directory", "write_atomically", "write_synced", "writing"]

# Suffix of temporary files: incomplete ones, and ones about to be removed. Their names begin with a dot.
TEMPORARY = ".tmp"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a temporary file beside ``path``, sync it to disk, and rename it to ``path``.

    Args:
        path: The file, in an existing directory.
        content: Bytes, or text to write as UTF-8.

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


def npy_bytes(array: NDArray[Any]) -> bytes:
    """The content of a .npy file, which numpy.load reads."""
    import numpy as np

    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and sync it to disk.

    Raises:
        ResourceError: If the disk is full.
        InputError: If the file exists, or its directory cannot be written to.
    """
    with writing(path, len(content)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _write(descriptor, content)
        finally:
            os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Sync the entries of a directory to disk, if the file system can do that."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems refuse to sync directories.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        ValueError: If the file is longer, or is not a regular file.
        OSError: If the file cannot be read.
    """
    # Opening a pipe would block.
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is longer than {limit:,} bytes")
    return content


@contextmanager
def writing(path: Path, size: int = 0) -> Iterator[None]:
    """Convert the system's errors while ``path`` is written into errors with messages for users.

    Args:
        path: The path that is written to.
        size: Number of bytes to write, for the message.

    Raises:
        ResourceError: If the disk is full.
        InputError: If the path cannot be written to.
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
    # The umask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
