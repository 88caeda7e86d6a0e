"""What is asked of a source."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from halikit.data.dataset import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Request"]


@dataclass(frozen=True)
class Request:
    """One call of :func:`halikit.data.load`, as its source sees it.

    Args:
        spec: The whole data spec, ``prefix:place``.
        size: Side of the square that images are cropped and resized to; ``None`` keeps them as they are.
        strict: Whether one file that cannot be used is one too many.
        on_progress: Called with (images done, images in all), the last time with both equal.
        canvas: Gives room for images of a shape ``(n, C, H, W)``, told the names of classes and attributes as well;
            ``None`` for room in memory.

    Raises:
        DataError: If the size is not a positive integer that an image can have.
    """

    spec: str
    size: int | None = None
    strict: bool = False
    on_progress: Callable[[int, int], None] | None = None
    canvas: Callable[[tuple[int, ...], Sequence[str]], NDArray[np.uint8]] | None = None

    def __post_init__(self) -> None:
        whole = isinstance(self.size, int) and not isinstance(self.size, bool)
        if self.size is not None and not (whole and 1 <= self.size <= 4096):
            raise DataError(f"size={self.size!r}: the side of an image is an integer from 1 to 4096")

    @property
    def path(self) -> Path:
        """The place after the prefix, with ``~`` expanded.

        Raises:
            DataError: If nothing is there.
        """
        place = Path(self.spec.partition(":")[2]).expanduser()
        if not place.exists():
            raise DataError(f"{self.spec}: no such file or directory: {place}")
        return place

    def progress(self, done: int, total: int) -> None:
        """Tell whoever asked how far the source has come."""
        if self.on_progress is not None:
            self.on_progress(done, total)

    def allocate(self, shape: tuple[int, ...], names: Sequence[str] = ()) -> NDArray[np.uint8]:
        """Room for images, which may be larger than memory when they are being packed.

        Args:
            shape: ``(n, C, H, W)``. A second, larger shape may be asked for; the room may then be the same.
            names: Of classes and attributes.

        Returns:
            uint8 of that shape, to be written to; what it holds is not defined.

        Raises:
            DataError: If memory cannot hold it.
        """
        import numpy as np

        if self.canvas is not None:
            return self.canvas(shape, names)
        needed, memory = math.prod(shape), _memory()
        if needed > memory:
            raise DataError(
                f"{self.spec}: loading {shape[0]} images of {shape[3]}×{shape[2]} takes {needed / 2**30:.0f} GiB of "
                f"memory, of which this machine has {memory / 2**30:.0f}: ask for a smaller size, or pack them first "
                "with halikit data pack"
            )
        return np.empty(shape, np.uint8)


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
