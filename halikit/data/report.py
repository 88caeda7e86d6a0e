"""What a data set holds, in numbers and in a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halikit.data.dataset import DataError, DataSet, Split

__all__ = ["Report", "contact_sheet", "report"]

_VALUES = 2**22  # looked at in one go
_FEW = 20  # classes that get a row each on a contact sheet
_ACROSS = 12


@dataclass(frozen=True)
class Report:
    """A data set in numbers; of values as they are stored, bytes or floats.

    Attributes:
        spec: Where it is from.
        origin: What a pack was made from.
        shape: Of one image.
        dtype: How its values are stored.
        parts: Images in each part.
        classes: Images of each class in all parts together, by name.
        attributes: Share of the images, of all parts together, that have each attribute, by name.
        minimum: The least value.
        maximum: The greatest value.
        mean: The mean value.
        deviation: The standard deviation of the values.
        skipped: Files that were left out, with reasons.
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


def report(data: DataSet) -> Report:
    """Look at every value of a data set, some images at a time."""
    parts = _distinct(data)
    rows = max(1, _VALUES // math.prod(data.shape))
    minimum, maximum, count, total, squares = np.inf, -np.inf, 0, 0.0, 0.0
    for part in parts:
        for images in part.images.split(rows):
            values = images.double()
            minimum, maximum = min(minimum, float(values.min())), max(maximum, float(values.max()))
            count, total, squares = (
                count + values.numel(),
                total + float(values.sum()),
                squares + float(values.norm() ** 2),
            )
    mean = total / count
    n = sum(map(len, parts))
    labels = [part.labels.bincount(minlength=len(data.classes)) for part in parts if part.labels is not None]
    flags = [part.attributes.sum(0) for part in parts if part.attributes is not None]
    return Report(
        spec=data.spec,
        origin=data.origin,
        shape=data.shape,
        dtype=str(data.train.images.dtype).removeprefix("torch."),
        parts={name: len(part) for name, part in data.parts.items()},
        classes=dict(zip(data.classes, torch.stack(labels).sum(0).tolist(), strict=True)) if labels else {},
        attributes=dict(zip(data.attributes, (torch.stack(flags).sum(0) / n).tolist(), strict=True)) if flags else {},
        minimum=minimum,
        maximum=maximum,
        mean=mean,
        deviation=max(0.0, squares / count - mean**2) ** 0.5,
        skipped=data.skipped,
    )


def contact_sheet(data: DataSet) -> NDArray[np.uint8]:
    """Training images: the first of each class in a row of its own where these are few, else some from everywhere.

    Returns:
        One picture, ``(height, width, 3)``.

    Raises:
        DataError: If the data are no images.
    """
    from halikit.plotting import grid, labelled_rows

    if len(data.shape) != 3:
        raise DataError(f"{data.spec}: vectors of {data.shape} make no picture")
    train, labels = data.train, data.train.labels
    if labels is None or not 2 <= len(data.classes) <= _FEW:
        return grid(train.batch(torch.linspace(0, len(train) - 1, min(len(train), _ACROSS**2)).long()), _ACROSS)
    rows: dict[str, Tensor] = {}
    for label, name in enumerate(data.classes):
        some = (labels == label).nonzero()[:_ACROSS, 0]
        blank = torch.ones(_ACROSS - len(some), *data.shape)
        rows[name] = torch.cat([train.batch(some), blank])
    return labelled_rows(rows)


def _distinct(data: DataSet) -> list[Split]:
    """The parts; validation and test may be one."""
    return list({id(part): part for part in data.parts.values()}.values())
