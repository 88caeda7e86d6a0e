"""A lock between processes, so that only one of them writes to a file or a directory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from halikit.errors import InputError

__all__ = ["locked"]


@contextmanager
def locked(file: Path, refusal: str) -> Iterator[None]:
    """Hold a lock within the context.

    The operating system releases the lock when the process ends, even if it is killed. Then the lock file stays, and
    locks nothing. Nothing is locked where no such file can be created, or the file system has no locks.

    Args:
        file: The lock file, which is created, and removed at the end. Its directory exists.
        refusal: Message of the error.

    Raises:
        InputError: If another process holds the lock.
    """
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(refusal) from None
    except OSError:
        yield
        return
    try:
        yield
    finally:
        # Removed while it is locked: whoever opened it before does not get a lock on a file that has no name.
        with suppress(OSError):  # Windows removes it when it is released
            file.unlink()
        lock.release()
