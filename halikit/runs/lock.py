"""A lock on a run directory, so that only one training writes to it at a time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from halikit.utils import lock

__all__ = ["locked"]


def locked(path: Path) -> AbstractContextManager[None]:
    """Lock a directory within the context, by a file ``.lock`` in it; see :func:`halikit.utils.lock.locked`.

    Args:
        path: A directory; if it does not exist, nothing is locked.

    Raises:
        InputError: On entry, if another process has locked it.
    """
    if not path.is_dir():
        return nullcontext()
    refusal = f"another training is writing to {path}; wait for it, or choose another directory with --out"
    return lock.locked(path / ".lock", refusal)
