"""What is asked of a source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from halikit.data.dataset import DataError

__all__ = ["Request"]


@dataclass(frozen=True)
class Request:
    """One call of :func:`halikit.data.load`, as its source sees it.

    Args:
        spec: The whole data spec, ``prefix:place``.
        size: Side of the square that images are cropped and resized to; ``None`` keeps them as they are.
        strict: Whether one file that cannot be used is one too many.
        on_progress: Called with (images done, images in all), the last time with both equal.

    Raises:
        DataError: If the size is not a positive integer that an image can have.
    """

    spec: str
    size: int | None = None
    strict: bool = False
    on_progress: Callable[[int, int], None] | None = None

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
