"""Labels that reconstructions keep, and classes that samples cover.

The paper measures attributes in the same way (section 5.2); the measure for classes is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from halikit.analysis.batched import at_random, batches, in_batches, sampled_parts
from halikit.data import DataSet, Split
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.utils.random import seeded

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

__all__ = ["LabelClassifier", "LabelScores", "label_scores"]

LabelClassifier = Literal["neighbours", "network"]

# Data that pass through the networks, or whose distances are taken, at a time.
_CHUNK = 1000


@dataclass(frozen=True)
class LabelScores:
    """Estimates on ``num_held_out`` held-out data and ``num_samples`` samples.

    Attributes:
        kept: Share of held-out data whose reconstruction along the means gets the right label from the classifier; one
            for each level, from 1 up.
        reference: Share of held-out data that get the right label themselves: the accuracy of the classifier.
        class_shares: Share of samples that the classifier assigns to each class.
        sample_distance: Mean Euclidean distance from a sample to the nearest training datum.
        held_out_distance: Mean Euclidean distance from a held-out datum to the nearest training datum.
        num_held_out: Number of held-out data.
        num_samples: Number of samples.
        classifier: The kind of classifier.
    """

    kept: tuple[float, ...]
    reference: float
    class_shares: tuple[float, ...]
    sample_distance: float
    held_out_distance: float
    num_held_out: int
    num_samples: int
    classifier: LabelClassifier


def label_scores(
    hierarchy: Hierarchy,
    data: DataSet,
    *,
    part: Split | None = None,
    num_samples: int = 2000,
    classifier: LabelClassifier = "neighbours",
    seed: int = 0,
) -> LabelScores:
    """Judge reconstructions and samples by a classifier fitted on the training data.

    Args:
        hierarchy: A hierarchy in evaluation mode; given the contexts of the part, if it takes one. Samples are then
            given contexts of the part that are drawn at random.
        data: Data with labels.
        part: Part to measure on; the held-out part by default.
        num_samples: Number of samples to draw.
        classifier: ``"neighbours"``: the 3 nearest neighbours; ``"network"``: one hidden layer of 256 units.
        seed: Seed of the samples and of the network.

    Raises:
        InputError: If the data have no labels.
    """
    part = data.held_out if part is None else part
    if data.train.labels is None or part.labels is None:
        raise InputError(f"{data.spec} has no labels, which this measure needs; use data with classes")
    device = hierarchy.prior.device
    train, held_out = _flat(data.train), _flat(part)
    fitted = _classifier(classifier, seed).fit(train.numpy(), data.train.labels.cpu().numpy())
    truth = part.labels.cpu()

    def predicted(x: Tensor) -> Tensor:
        return torch.from_numpy(fitted.predict(x.numpy()))

    def accuracy(x: Tensor) -> float:
        return float((predicted(x) == truth).double().mean())

    def rebuilt(level: int) -> Tensor:
        images = (hierarchy.rows(rows).reconstruct(x, level) for rows, x in batches(part, _CHUNK, device=device))
        return torch.cat([each.flatten(1).cpu() for each in images])

    with torch.no_grad():
        kept = tuple(accuracy(rebuilt(level)) for level in range(1, len(hierarchy) + 1))
        with seeded(seed, device):
            parts = sampled_parts(at_random(hierarchy, num_samples), num_samples, _CHUNK)
            samples = torch.cat([each.sample(n).flatten(1).cpu() for n, each in parts])
    shares = torch.bincount(predicted(samples), minlength=len(data.classes)).double() / num_samples
    return LabelScores(
        kept,
        accuracy(held_out),
        tuple(shares.tolist()),
        _nearest_distance(samples, train),
        _nearest_distance(held_out, train),
        len(part),
        num_samples,
        classifier,
    )


def _classifier(name: LabelClassifier, seed: int) -> ClassifierMixin:
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier

    if name == "neighbours":
        return KNeighborsClassifier(3)
    return MLPClassifier((256,), batch_size=100, random_state=seed)


def _flat(part: Split) -> Tensor:
    return in_batches(lambda x: x.flatten(1).cpu(), part, _CHUNK)


def _nearest_distance(x: Tensor, train: Tensor) -> float:
    return float(in_batches(lambda chunk: torch.cdist(chunk, train).min(1).values, x, _CHUNK).mean())
