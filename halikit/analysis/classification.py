"""Errors of the classifier ``x → z → y`` (Eq. 9, Table 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from halikit.data import Augmentation, Split
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
        errors: Data put into a wrong class, along the means of the latents.
        by_class: The same for the data of each class.
        number: Data in all.
    """

    errors: int
    by_class: tuple[int, ...]
    number: int


@torch.no_grad()
def class_errors(
    hierarchy: Hierarchy, part: Split, *, augmentation: Augmentation | None = None, views: int = 0, seed: int = 0
) -> ClassErrors:
    """Count the data that a hierarchy with classes on top puts into a wrong one.

    Args:
        hierarchy: In evaluation mode.
        part: With labels.
        augmentation: What the views are made by.
        views: So many changed copies of each image have the same say as itself: probabilities are averaged. The paper
            has none.
        seed: Of the views.

    Raises:
        InputError: If there are no labels, no classes on top, labels beyond them, or views of nothing.
    """
    if part.labels is None:
        raise InputError("there are no labels to count errors against")
    moving = augmentation or Augmentation()
    if views and not moving:
        raise InputError(
            "views are augmented images, and this run augments none (data.shift, data.rotate and the like)"
        )
    classes, device = hierarchy.spaces[-1].size, hierarchy.prior.device
    predicted = []
    for index in torch.arange(len(part)).split(_CHUNK):
        x = part.batch(index).to(device)
        said = classify(hierarchy, x).softmax(1)
        for view in range(views):
            said += classify(hierarchy, moving(x, index, seed=seed, epoch=view)).softmax(1)
        predicted.append(said.argmax(1).cpu())
    told, labels = torch.cat(predicted), part.labels.cpu()
    if len(labels) and int(labels.max()) >= classes:
        raise InputError(f"the model knows {classes} classes, but the data have a label {int(labels.max())}")
    by_class = torch.bincount(labels[told != labels], minlength=classes).tolist()
    return ClassErrors(sum(by_class), tuple(by_class), len(part))
