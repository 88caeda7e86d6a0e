"""Errors of the classifier ``x → z → y`` (Eq. 9, Table 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from halikit.analysis.batched import batches
from halikit.data import Augmentation, Split
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.supervision import classify

__all__ = ["ClassErrors", "class_errors"]

# Images that pass through the networks at a time.
_CHUNK = 1000


@dataclass(frozen=True)
class ClassErrors:
    """Errors on a finite set: the count is exact, and an estimate of the error rate on other data.

    Attributes:
        errors: Number of data that are assigned to a wrong class, along the means of the latents.
        by_class: Number of errors among the data of each class.
        number: Number of data.
    """

    errors: int
    by_class: tuple[int, ...]
    number: int


@torch.no_grad()
def class_errors(
    hierarchy: Hierarchy, part: Split, *, augmentation: Augmentation | None = None, views: int = 0, seed: int = 0
) -> ClassErrors:
    """Count the data that a hierarchy with classes on top assigns to a wrong class.

    Args:
        hierarchy: A hierarchy in evaluation mode.
        part: Data with labels.
        augmentation: Augmentation that makes the views.
        views: Number of augmented copies of each image; class probabilities are averaged over the image and its copies.
            The paper uses none.
        seed: Seed of the views.

    Raises:
        InputError: If there are no labels, no classes on top, a label without a class, or views without
            augmentation.
    """
    if part.labels is None:
        raise InputError("there are no labels to count errors against")
    moving = augmentation or Augmentation()
    if views and not moving:
        raise InputError(
            "views are augmented images, and this run augments none (data.shift, data.rotate and the like)"
        )
    classes, device = hierarchy.spaces[-1].size, hierarchy.prior.device
    chosen = []
    for rows, x in batches(part, _CHUNK, device=device):
        index = torch.arange(rows.start, rows.stop)
        probabilities = classify(hierarchy, x).softmax(1)
        for view in range(views):
            probabilities += classify(hierarchy, moving(x, index, seed=seed, epoch=view)).softmax(1)
        chosen.append(probabilities.argmax(1).cpu())
    predicted, labels = torch.cat(chosen), part.labels.cpu()
    if len(labels) and int(labels.max()) >= classes:
        raise InputError(f"the model has {classes} classes, but the data have a label {int(labels.max())}")
    by_class = torch.bincount(labels[predicted != labels], minlength=classes).tolist()
    return ClassErrors(sum(by_class), tuple(by_class), len(part))
