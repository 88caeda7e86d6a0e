"""What a source is called with: the data spec and the options of :func:`halikit.data.load`."""

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
    """One call of :func:`halikit.data.load`.

    Args:
        spec: The whole data spec, ``prefix:place``.
        size: Side of the square that images are cropped and resized to; ``None`` keeps their own size.
        strict: Whether a single file that cannot be used is an error.
        on_progress: Called with (images done, images in total); in the last call the two are equal.
        canvas: Called with a shape ``(n, C, H, W)`` and the names of classes and attributes; returns an array of that
            shape for the images. ``None`` for an array in memory.

    Raises:
        DataError: If the size is not an integer from 1 to 4096.
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
        """The path after the prefix, with ``~`` expanded.

        Raises:
            DataError: If it does not exist.
        """
        place = Path(self.spec.partition(":")[2]).expanduser()
        if not place.exists():
            raise DataError(f"{self.spec}: no such file or directory: {place}")
        return place

    def progress(self, done: int, total: int) -> None:
        """Report how many images of the total are done."""
        if self.on_progress is not None:
            self.on_progress(done, total)

    def allocate(self, shape: tuple[int, ...], names: Sequence[str] = ()) -> NDArray[np.uint8]:
        """An array for images: in memory, or in the file of a pack, which may be larger than memory.

        Args:
            shape: ``(n, C, H, W)``. A second call with a larger shape may return the same memory.
            names: Names of classes and attributes.

        Returns:
            uint8 of that shape; its values are not defined.

        Raises:
            DataError: If it does not fit into memory.
        """
        import numpy as np

        if self.canvas is not None:
            return self.canvas(shape, names)
        needed, memory = math.prod(shape), math.inf
        if hasattr(os, "sysconf"):
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > memory:
            raise DataError(
                f"{self.spec}: {shape[0]} images of {shape[3]}×{shape[2]} need {needed / 2**30:.0f} GiB of memory, "
                f"but this machine has {memory / 2**30:.0f} GiB: choose a smaller size, or pack them with "
                "halikit data pack"
            )
        return np.empty(shape, np.uint8)
