"""Whether samples of the decoder (Eq. 4) have the class that was asked for; this measure is ours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halikit.analysis.batched import in_batches
from halikit.analysis.quantity import Quantity
from halikit.analysis.sampling import sample
from halikit.data import DataSet
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.utils.random import seeded

__all__ = ["ClassAgreement", "class_agreement", "samples_of_classes"]

# Data that are flattened at a time.
_CHUNK = 1000


@dataclass(frozen=True)
class ClassAgreement:
    """Agreement of the nearest training data with the class that a sample was asked to have.

    Attributes:
        mean: Share of samples whose nearest training data have the class, over all classes alike; an estimate.
        by_class: The same for each class; estimates.
        reference: Share of held-out data whose nearest training data have their class: what the classifier can reach;
            an estimate.
        neighbours: Number of nearest training data that vote.
    """

    mean: Quantity
    by_class: tuple[float, ...]
    reference: Quantity
    neighbours: int


def samples_of_classes(hierarchy: Hierarchy, classes: int, per_class: int, *, seed: int = 0) -> Tensor:
    """Samples of every class, ``(classes, per_class, *shape of x)``.

    Args:
        hierarchy: A hierarchy in evaluation mode that takes classes ``(n,)`` int64 as its context.
        classes: Number of classes.
        per_class: Number of samples of each class.
        seed: Seed of the samples.
    """
    device = hierarchy.prior.device
    asked = torch.arange(classes, device=device).repeat_interleave(per_class)
    with seeded(seed, device):
        samples = sample(hierarchy.conditioned(asked), len(asked))
    return samples.unflatten(0, (classes, per_class))


def class_agreement(
    hierarchy: Hierarchy, data: DataSet, *, per_class: int = 100, neighbours: int = 3, seed: int = 0
) -> ClassAgreement:
    """Draw samples of every class, and compare them with the training data that are nearest in pixels.

    Args:
        hierarchy: A hierarchy in evaluation mode that takes classes ``(n,)`` int64 as its context.
        data: Data with labels.
        per_class: Number of samples of each class.
        neighbours: Number of nearest training data that vote on the class of a sample.
        seed: Seed of the samples.

    Raises:
        InputError: If the data have no labels.
    """
    from sklearn.neighbors import KNeighborsClassifier

    part = data.held_out
    if data.train.labels is None or part.labels is None:
        raise InputError(f"{data.spec} has no labels, which this measure needs; use data with classes")
    classes = len(data.classes)
    asked = torch.arange(classes).repeat_interleave(per_class)
    samples = samples_of_classes(hierarchy, classes, per_class, seed=seed).flatten(0, 1)
    train, held_out = (in_batches(lambda x: x.flatten(1).cpu(), each, _CHUNK) for each in (data.train, part))
    fitted = KNeighborsClassifier(neighbours).fit(train.numpy(), data.train.labels.cpu().numpy())

    def predicted(x: Tensor) -> Tensor:
        return torch.from_numpy(fitted.predict(x.flatten(1).cpu().numpy()))

    agree = predicted(samples) == asked
    right = predicted(held_out) == part.labels.cpu()
    by_class = agree.view(classes, per_class).double().mean(1)
    return ClassAgreement(
        Quantity.mean(agree.double(), "estimate"),
        tuple(by_class.tolist()),
        Quantity.mean(right.double(), "estimate"),
        neighbours,
    )
