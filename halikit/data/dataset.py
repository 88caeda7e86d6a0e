"""What every source gives: a data set with its parts, gathered by index from memory or from a memory-mapped file."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from halikit.errors import InputError

__all__ = ["DataError", "DataSet", "Split", "from_tensor"]

ROOM = 0.5  # images move to a device if they take no more than this share of its free memory


class DataError(InputError):
    """Data that cannot be used: in a line or two, what is wrong, where, and what would be right."""


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set.

    Args:
        images: ``(n, *shape)``: uint8 in 0 … 255, or float32 that already lies in [−1, 1]. Read only: they may be
            the pages of a file.
        labels: ``(n,)`` int64, indices into the data set's classes; ``None`` where there are none.
        attributes: ``(n, A)`` bool, in the order of the data set's attributes; ``None`` where there are none.
        target: Where batches go, if not to where the images are.
        streamed: Whether images are read from a file as they are needed.

    Raises:
        ValueError: If images, labels and attributes do not agree in number, or one has another dtype.
    """

    images: Tensor
    labels: Tensor | None = None
    attributes: Tensor | None = None
    target: torch.device | None = None
    streamed: bool = False

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.dtype not in (torch.uint8, torch.float32):
            raise ValueError(f"images are uint8 or float32, got {self.images.dtype}")
        if self.labels is not None and (self.labels.shape != (n,) or self.labels.dtype != torch.int64):
            raise ValueError(
                f"{n} images need ({n},) int64 labels, got {tuple(self.labels.shape)} of {self.labels.dtype}"
            )
        flags = self.attributes
        if flags is not None and (flags.dim() != 2 or len(flags) != n or flags.dtype != torch.bool):
            raise ValueError(f"{n} images need ({n}, A) bool attributes, got {tuple(flags.shape)} of {flags.dtype}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> Split:
        """Some of the images with their labels and attributes, sharing memory."""
        return replace(
            self,
            images=self.images[rows],
            labels=None if self.labels is None else self.labels[rows],
            attributes=None if self.attributes is None else self.attributes[rows],
        )

    @property
    def takes_time(self) -> bool:
        """Whether a batch takes the host time that a step could be played in: to read a file, or to reach a GPU."""
        return self.streamed or self.device != self.images.device

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self.target or self.images.device

    def batch(self, index: Tensor) -> Tensor:
        """The images at ``index``, as the networks take them.

        Args:
            index: ``(b,)`` int64, on any device.

        Returns:
            ``(b, *shape)`` float32 in [−1, 1], on :attr:`device`.
        """
        index = index.to(self.images.device)
        if self.device.type == "cuda" and self.images.device.type == "cpu":
            # As bytes, from memory that the GPU may read by itself: the host does not wait for the copy.
            staged = torch.empty(len(index), *self.images.shape[1:], dtype=self.images.dtype, pin_memory=True)
            images = torch.index_select(self.images, 0, index, out=staged).to(self.device, non_blocking=True)
        else:
            images = self.images[index].to(self.device)
        return images.to(torch.float32).div_(127.5).sub_(1) if images.dtype == torch.uint8 else images

    def to(self, device: torch.device | str, *, resident: bool = True) -> Split:
        """The same part, with its batches on ``device``.

        Args:
            device: Where labels and attributes go.
            resident: Whether the images go there as well; else they are gathered where they are, batch by batch.
        """
        device = torch.device(device)
        return replace(
            self,
            images=self.images.to(device) if resident else self.images,
            labels=None if self.labels is None else self.labels.to(device),
            attributes=None if self.attributes is None else self.attributes.to(device),
            target=None if resident else device,
            streamed=self.streamed and not (resident and device.type == "cuda"),
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
        attributes: Names of the attributes in order; empty where there are none.
        origin: What a pack was made from, as a data spec without its directories.
    """

    spec: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split
    skipped: tuple[tuple[str, str], ...] = ()
    attributes: tuple[str, ...] = ()
    origin: str | None = None

    @property
    def parts(self) -> dict[str, Split]:
        """The parts that there are, by name, in the order train, validation, test."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def held_out(self) -> Split:
        """The part to measure on while training: validation if there is one, else test."""
        return self.test if self.validation is None else self.validation

    def check_batch(self, size: int) -> None:
        """Raise a DataError if the training part has fewer images than one batch."""
        if len(self.train) < size:
            raise DataError(
                f"{self.spec} has {len(self.train)} training samples, fewer than a batch of {size}; "
                "lower training.batch_size"
            )

    def to(self, device: torch.device | str) -> DataSet:
        """The same data set with its batches on ``device``.

        The images go there too, all or none: all if they take no more than half of the device's free memory.
        """
        device = torch.device(device)
        parts = {id(part): part for part in self.parts.values()}
        resident = _fits(sum(part.images.nbytes for part in parts.values()), device)
        moved = {key: part.to(device, resident=resident) for key, part in parts.items()}
        return replace(
            self,
            train=moved[id(self.train)],
            validation=None if self.validation is None else moved[id(self.validation)],
            test=moved[id(self.test)],
        )


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


def _fits(count: int, device: torch.device) -> bool:
    return device.type != "cuda" or count <= ROOM * torch.cuda.mem_get_info(device)[0]
