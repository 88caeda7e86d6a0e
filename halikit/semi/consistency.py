"""Consistency with a teacher: augmented images have to be classified as the teacher classifies the original ones.

This is the method of FixMatch (Sohn et al. 2020) with the exponential moving average of the weights as the teacher, and
the distribution alignment of ReMixMatch (Berthelot et al. 2020).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from halikit.hierarchy import Hierarchy
from halikit.supervision import classify
from halikit.utils.tensors import at_least_single

__all__ = ["DistributionAlignment", "PseudoLabels", "pseudo_labels"]

# Share of the running mean of the teacher's predictions that is kept at each batch.
_DECAY = 0.99


class PseudoLabels(NamedTuple):
    """Labels that a teacher predicts.

    Attributes:
        y: ``(n,)`` int64.
        is_sure: Whether the probability of the class is above the threshold, ``(n,)`` bool.
    """

    y: Tensor
    is_sure: Tensor


class DistributionAlignment(nn.Module):
    """Divides predicted probabilities by their running mean, so that all classes are predicted equally often.

    Args:
        classes: Number of classes K.

    Attributes:
        mean: Running mean of the predictions, ``(K,)``; uniform at first. Saved with the training.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.full((classes,), 1 / classes))

    @torch.no_grad()
    def update(self, probabilities: Tensor) -> None:
        """Move the running mean towards the mean of a batch of probabilities, ``(n, K)``."""
        self.mean.lerp_(probabilities.mean(0), 1 - _DECAY)

    def forward(self, probabilities: Tensor) -> Tensor:
        """The probabilities after distribution alignment, ``(n, K)``."""
        aligned = probabilities / self.mean
        return aligned / aligned.sum(1, keepdim=True)


@torch.no_grad()
def pseudo_labels(
    teacher: Hierarchy, x: Tensor, alignment: DistributionAlignment, *, threshold: float = 0.95
) -> PseudoLabels:
    """Predict the classes of unlabelled images.

    Args:
        teacher: The hierarchy with averaged weights, in evaluation mode.
        x: Unlabelled images as they are, ``(n, *shape of x)``.
        alignment: Distribution alignment of the predictions; its running mean is updated.
        threshold: Lowest probability, after alignment, at which the teacher counts as sure, in [0, 1).
    """
    probabilities = at_least_single(classify(teacher, x)).softmax(1)
    alignment.update(probabilities)
    highest, y = alignment(probabilities).max(1)
    return PseudoLabels(y, highest > threshold)
