"""What every source gives: a data set with its parts, held as tensors and gathered by index."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from halikit.errors import InputError

__all__ = ["DataError", "DataSet", "Split", "from_tensor"]


class DataError(InputError):
    """Data that cannot be used: in a line or two, what is wrong, where, and what would be right."""


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set, on one device.

    Args:
        images: ``(n, *shape)``: uint8 in 0 … 255, or float32 that already lies in [−1, 1].
        labels: ``(n,)`` int64, indices into the data set's classes; ``None`` where there are none.

    Raises:
        ValueError: If images and labels do not agree in number, or either has another dtype.
    """

    images: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.dtype not in (torch.uint8, torch.float32):
            raise ValueError(f"images are uint8 or float32, got {self.images.dtype}")
        if self.labels is not None and (self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64):
            raise ValueError(
                f"{len(self.images)} images need ({len(self.images)},) int64 labels, "
                f"got {tuple(self.labels.shape)} of {self.labels.dtype}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> Split:
        """Some of the images with their labels, sharing memory."""
        return Split(self.images[rows], None if self.labels is None else self.labels[rows])

    @property
    def device(self) -> torch.device:
        """Where the images are, and where batches are gathered."""
        return self.images.device

    def batch(self, index: Tensor) -> Tensor:
        """The images at ``index``, as the networks take them.

        Args:
            index: ``(b,)`` int64, on any device.

        Returns:
            ``(b, *shape)`` float32 in [−1, 1], on the split's device.
        """
        images = self.images[index.to(self.device)]
        return images.to(torch.float32).div_(127.5).sub_(1) if images.dtype == torch.uint8 else images

    def to(self, device: torch.device | str) -> Split:
        """The same images and labels on ``device``."""
        return replace(
            self, images=self.images.to(device), labels=None if self.labels is None else self.labels.to(device)
        )


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set with its parts; validation images neither train nor are trained on.

    Args:
        spec: Where it is from, such as ``mnist:DIR``.
        shape: Shape of one image, ``(C, H, W)``.
        classes: Names of the classes in order of their labels; empty where there are none.
        train: The part to train on.
        validation: The part to choose by, or ``None``.
        test: The part to report on.
        skipped: Files that were left out, as (relative path, reason).
    """

    spec: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def held_out(self) -> Split:
        """The part to measure on while training: validation if there is one, else test."""
        return self.test if self.validation is None else self.validation

    def to(self, device: torch.device | str) -> DataSet:
        """The same data set with all its parts on ``device``."""
        validation = None if self.validation is None else self.validation.to(device)
        return replace(self, train=self.train.to(device), validation=validation, test=self.test.to(device))


def from_tensor(x: Tensor) -> DataSet:
    """A data set of samples in memory; the last tenth is held out.

    Args:
        x: ``(n, *shape)`` float32, two samples or more. Images lie in [−1, 1].

    Raises:
        DataError: If these are too few, of another dtype, or not all finite.
    """
    if x.dtype != torch.float32 or x.dim() < 2 or len(x) < 2 or not x.isfinite().all():
        raise DataError(
            f"a tensor of data is (n, *shape) float32 with n ≥ 2 and finite, got {tuple(x.shape)} of {x.dtype}"
        )
    cut = len(x) - max(1, len(x) // 10)
    return DataSet("tensor", tuple(x.shape[1:]), (), Split(x[:cut]), None, Split(x[cut:]))
