"""Relaxed bits and one-hot vectors (Maddison et al. 2017; Jang et al. 2017), with finite densities at every draw.

At a low temperature most entries of a relaxed one-hot vector are smaller than the smallest float, and many relaxed bits
round to 0 or 1. There the density of the relaxation is infinite or undefined. The distributions here have a floor: an
entry below it is raised to it. The draws then have a mixed distribution. Its exact log-probability is given: a density
in the entries above the floor, and the probability to be below it for all others.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

__all__ = ["RelaxedBits", "RelaxedOneHot"]

# The smallest entry of a relaxed one-hot vector: a power of two, which is the same number in every dtype. A gradient
# through its logarithm, 2^100, is still finite in single precision.
_FLOOR = 2.0**-100


class RelaxedBits(dist.TorchDistribution):
    """A relaxed bit: ``sigmoid((logit + logistic noise) / temperature)``, at least ``ε`` from 0 and from 1.

    ``ε`` is 16 times the precision of the dtype, 1.9e-6 in single precision: closer to 1 there are too few floats.

    Args:
        temperature: Positive.
        logits: Log-odds of 1, ``batch_shape``.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012 - torch's name and type
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, temperature: float, logits: Tensor) -> None:
        self.temperature, self.logits = temperature, logits
        super().__init__(logits.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> RelaxedBits:
        """The distribution with further batch dimensions."""
        return RelaxedBits(self.temperature, self.logits.expand(torch.Size(batch_shape)))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws in [ε, 1 − ε], ``(*sample_shape, *batch_shape)``; they pass gradients."""
        noise = self.logits.new_empty(self._extended_shape(torch.Size(sample_shape))).uniform_()
        edge = torch.finfo(noise.dtype).tiny
        noise = noise.clamp(edge, 1 - torch.finfo(noise.dtype).eps)
        least = _least(noise.dtype)
        return ((self.logits + noise.logit()) / self.temperature).sigmoid().clamp(least, 1 - least)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density between ``ε`` and ``1 − ε``, the log-probability of the rest at and beyond these, in nats."""
        least = _least(value.dtype)
        inside = value.clamp(least, 1 - least)
        log_value, log_rest = inside.log(), (-inside).log1p()
        noise = self.temperature * (log_value - log_rest) - self.logits
        below, above = logsigmoid(noise), logsigmoid(-noise)
        density = below + above + math.log(self.temperature) - log_value - log_rest
        return torch.where(value <= least, below, torch.where(value >= 1 - least, above, density))


class RelaxedOneHot(dist.TorchDistribution):
    """A relaxed one-hot vector: ``softmax((logits + Gumbel noise) / temperature)``, each entry at least 2⁻¹⁰⁰.

    With ``m`` entries above the floor, ``a`` the logits and ``s = a − temperature · log value``, the log-probability is
    ``log (m−1)! + (m−1) log temperature + Σ (s − log value) − m · logsumexp s``, where the sum is over the ``m``
    entries above the floor and ``logsumexp`` over all. For ``m = K`` it is the density of the relaxation; for ``m = 1``
    it is the probability that all other entries are below the floor.

    Args:
        temperature: Positive.
        logits: Unnormalised log-probabilities, ``(*batch_shape, K)``.
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012 - torch's name and type
    support = constraints.simplex
    has_rsample = True

    def __init__(self, temperature: float, logits: Tensor) -> None:
        self.temperature, self.logits = temperature, logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> RelaxedOneHot:
        """The distribution with further batch dimensions."""
        return RelaxedOneHot(self.temperature, self.logits.expand(torch.Size(batch_shape) + self.event_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, ``(*sample_shape, *batch_shape, K)``; they pass gradients."""
        noise = self.logits.new_empty(self._extended_shape(torch.Size(sample_shape))).exponential_()
        noise = -noise.clamp(min=torch.finfo(noise.dtype).tiny).log()
        return ((self.logits + noise) / self.temperature).softmax(-1).clamp(min=_FLOOR)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability, ``(*batch_shape)``, in nats; see the class."""
        log_value = value.clamp(min=_FLOOR).log()
        scores = self.logits - self.temperature * log_value
        above = value > _FLOOR
        count = above.sum(-1).to(scores.dtype)
        total = torch.where(above, scores - log_value, 0).sum(-1)
        constant = torch.lgamma(count) + (count - 1) * math.log(self.temperature)
        return constant + total - count * scores.logsumexp(-1)


def _least(dtype: torch.dtype) -> float:
    return 16 * torch.finfo(dtype).eps
