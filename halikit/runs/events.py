"""Curves and pictures of a run for TensorBoard, if it is installed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

__all__ = ["Events", "are_written"]


def are_written() -> bool:
    """Whether TensorBoard is installed."""
    return find_spec("tensorboard") is not None


class Events:
    """A logger of event files for TensorBoard, which are optional: if it fails, the training continues without them.

    Args:
        path: Directory of the files; created with the first one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: SummaryWriter | None = None
        self._purge: int | None = None
        self._writes = are_written()

    def rewind(self, step: int) -> None:
        """Let TensorBoard ignore the events after a step."""
        self.finalize("success")
        self._purge = step + 1

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        with self._forgiving():
            if writer := self._opened():
                for name, value in metrics.items():
                    writer.add_scalar(name, value, step)

    def log_image(self, key: str, images: Sequence[NDArray[np.uint8]], step: int) -> None:
        """Add pictures, ``(H, W, 3)`` each."""
        with self._forgiving():
            if writer := self._opened():
                for pixels in images:
                    writer.add_image(key, pixels, step, dataformats="HWC")

    def finalize(self, status: str) -> None:
        """Write the buffered events and close the file; the next event opens a new file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._forgiving():
                writer.close()

    def _opened(self) -> SummaryWriter | None:
        if self._writer is None and self._writes:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except Exception as error:  # a broken package may raise any error
                self._writes = False
                warnings.warn(f"no TensorBoard events: it cannot be imported ({error})", stacklevel=2)
                return None
            self._writer = SummaryWriter(str(self.path), purge_step=self._purge, flush_secs=10)
        return self._writer

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._writes = False
