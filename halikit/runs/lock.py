"""A lock on a run directory, so that only one training writes to it at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from halikit.errors import InputError

__all__ = ["locked"]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a directory within the context.

    The operating system releases the lock when the process ends, even if it is killed. There is no lock file. Nothing
    is locked if the operating system or the file system does not support locks.

    Args:
        path: A directory; if it does not exist, nothing is locked.

    Raises:
        InputError: If another process has locked it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    if not path.is_dir():
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another training is writing to {path}; wait for it, or choose another directory with --out"
            ) from None
        except OSError:
            pass  # some network file systems have no locks
        yield
    finally:
        os.close(descriptor)
