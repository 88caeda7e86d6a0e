"""Statistics of a data set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from halikit.data.dataset import DataSet

__all__ = ["Report", "report"]

_VALUES = 2**22  # examined at a time


@dataclass(frozen=True)
class Report:
    """Statistics of a data set. They are exact, over all parts, and concern the values as they are stored.

    Attributes:
        spec: Its data spec.
        origin: For a pack, the data spec that it was made from.
        shape: Shape of one image.
        dtype: Type of the stored values: ``uint8``, 0 … 255, or ``float32``, −1 … 1.
        parts: Number of images in each part.
        classes: Number of images of each class, by name.
        attributes: Share of the images with each attribute, in [0, 1], by name.
        minimum: The lowest value.
        maximum: The highest value.
        mean: The mean value.
        deviation: The standard deviation of the values.
        skipped: Files that were left out, as (path, reason).
        notes: What the reader assumed, or found unusual.
    """

    spec: str
    origin: str | None
    shape: tuple[int, ...]
    dtype: str
    parts: dict[str, int]
    classes: dict[str, int]
    attributes: dict[str, float]
    minimum: float
    maximum: float
    mean: float
    deviation: float
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def report(data: DataSet) -> Report:
    """Compute the statistics of a data set, some images at a time."""
    parts = data.distinct_parts
    n = sum(map(len, parts))
    count = n * math.prod(data.shape)
    minimum, maximum, total, squares = math.inf, -math.inf, 0.0, 0.0
    for part in parts:
        some = max(1, _VALUES // math.prod(data.shape))
        for start in range(0, len(part), some):
            values = part.images[start : start + some].double()
            minimum, maximum = min(minimum, float(values.min())), max(maximum, float(values.max()))
            total, squares = total + float(values.sum()), squares + float(values.square().sum())
    mean = total / count
    labels = [part.labels.bincount(minlength=len(data.classes)) for part in parts if part.labels is not None]
    attributes = [part.attributes.sum(0) for part in parts if part.attributes is not None]
    return Report(
        spec=data.spec,
        origin=data.origin,
        shape=data.shape,
        dtype=str(data.train.images.dtype).removeprefix("torch."),
        parts={name: len(part) for name, part in data.parts.items()},
        classes=dict(zip(data.classes, torch.stack(labels).sum(0).tolist(), strict=True)) if labels else {},
        attributes=dict(zip(data.attributes, (torch.stack(attributes).sum(0) / n).tolist(), strict=True))
        if attributes
        else {},
        minimum=minimum,
        maximum=maximum,
        mean=mean,
        deviation=max(0.0, squares / count - mean**2) ** 0.5,
        skipped=data.skipped,
        notes=data.notes,
    )
