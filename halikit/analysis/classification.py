"""Errors of the classifier ``x → z → y`` (Eq. 9, Table 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from halikit.data import Split
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.supervision import classify

__all__ = ["ClassErrors", "class_errors"]

# Images pass through the networks this many at a time.
_CHUNK = 1000


@dataclass(frozen=True)
class ClassErrors:
    """Errors counted on a finite set: exact on it, an estimate of the rate on other data of its kind.

    Attributes:
        errors: Data put into a wrong class, along the means.
        by_class: The same for the data of each class.
        number: Data in all.
    """

    errors: int
    by_class: tuple[int, ...]
    number: int


@torch.no_grad()
def class_errors(hierarchy: Hierarchy, part: Split) -> ClassErrors:
    """Count the data that a hierarchy with classes on top puts into a wrong one.

    Args:
        hierarchy: In evaluation mode.
        part: With labels.

    Raises:
        InputError: If there are no labels, no classes on top, or labels beyond them.
    """
    if part.labels is None:
        raise InputError("there are no labels to count errors against")
    classes, device = hierarchy.spaces[-1].size, hierarchy.prior.device
    chunks = torch.arange(len(part)).split(_CHUNK)
    predicted = torch.cat([classify(hierarchy, part.batch(i).to(device)).argmax(1).cpu() for i in chunks])
    labels = part.labels.cpu()
    if len(labels) and int(labels.max()) >= classes:
        raise InputError(f"the model knows {classes} classes, but the data have a label {int(labels.max())}")
    by_class = torch.bincount(labels[predicted != labels], minlength=classes).tolist()
    return ClassErrors(sum(by_class), tuple(by_class), len(part))
