"""How much of the data's classes survives each level, and whether samples cover them; ours.

Section 5.2 asks the same of attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from halikit.data import DataSet, Split
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.utils.random import seeded

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

__all__ = ["LabelClassifier", "LabelScores", "label_scores"]

LabelClassifier = Literal["neighbours", "network"]

# Samples pass through the networks, and distances are taken, this many at a time.
_CHUNK = 1000


@dataclass(frozen=True)
class LabelScores:
    """Proportions counted on finite sets: estimates, with ``num_held_out`` and ``num_samples`` draws behind them.

    Attributes:
        kept: Share of held-out data whose reconstruction from level l the classifier gives the right label, from level
            1 up; along the means.
        reference: The same for the held-out data themselves: the classifier's accuracy.
        class_shares: Share of prior samples that the classifier puts into each class.
        sample_distance: Mean Euclidean distance of a prior sample to the nearest training datum.
        held_out_distance: The same for held-out data.
        num_held_out: Held-out data measured on.
        num_samples: Prior samples drawn.
        classifier: What gave the labels.
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
        hierarchy: In evaluation mode.
        data: With labels.
        part: Where to measure; the held-out part by default.
        num_samples: Prior samples to draw.
        classifier: The 3 nearest neighbours, or a network with one hidden layer of 256 units.
        seed: Of the samples and of the network.

    Raises:
        InputError: If the data have no labels.
    """
    part = data.held_out if part is None else part
    if data.train.labels is None or part.labels is None:
        raise InputError(f"{data.spec} has no labels, so no label can be kept; use data with classes")
    train = _flat(data.train)
    fitted = _classifier(classifier, seed).fit(train.numpy(), data.train.labels.cpu().numpy())
    truth = part.labels.cpu()

    def accuracy(x: Tensor) -> float:
        return float((torch.from_numpy(fitted.predict(x.numpy())) == truth).double().mean())

    held_out = _flat(part)
    kept = tuple(accuracy(_reconstructed(hierarchy, part, level)) for level in range(1, len(hierarchy) + 1))
    samples = _sampled(hierarchy, num_samples, seed)
    predicted = torch.from_numpy(fitted.predict(samples.numpy()))
    shares = torch.bincount(predicted, minlength=len(data.classes)).double() / num_samples
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


def _flat(split: Split) -> Tensor:
    return split.batch(torch.arange(len(split), device=split.device)).flatten(1).cpu()


@torch.no_grad()
def _reconstructed(hierarchy: Hierarchy, part: Split, level: int) -> Tensor:
    chunks = torch.arange(len(part), device=part.device).split(_CHUNK)
    device = hierarchy.prior.device
    return torch.cat([hierarchy.reconstruct(part.batch(i).to(device), level).flatten(1).cpu() for i in chunks])


@torch.no_grad()
def _sampled(hierarchy: Hierarchy, n: int, seed: int) -> Tensor:
    device = hierarchy.prior.device
    with seeded(seed, device):
        return torch.cat([hierarchy.sample(min(_CHUNK, n - i)).flatten(1).cpu() for i in range(0, n, _CHUNK)])


def _nearest_distance(x: Tensor, train: Tensor) -> float:
    return float(torch.cat([torch.cdist(chunk, train).min(1).values for chunk in x.split(_CHUNK)]).mean())
