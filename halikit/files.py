"""Writing files so that nothing half-written ever replaces a good one."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from halikit.errors import InputError, ResourceError

__all__ = ["write_atomically"]


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
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no space left to write {path} ({len(content) / 2**20:.1f} MiB)") from None
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def _umask() -> int:
    # The only way to read it is to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
