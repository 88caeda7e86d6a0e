"""A distribution over a flat batch, seen with other batch dimensions."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["Rebatched"]


class Rebatched(dist.TorchDistribution):
    """A distribution with the batch shape ``(n,)``, seen with a batch shape of ``n`` elements in all.

    Args:
        base: The distribution, batch shape ``(n,)``.
        batch_shape: The batch shape to see it with.
    """

    def __init__(self, base: Any, batch_shape: torch.Size) -> None:
        self.base = base
        super().__init__(batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws pass gradients."""
        return self.base.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        """Where the states are."""
        return self.base.support

    @property
    def mean(self) -> Tensor:
        """``(*batch_shape, *event_shape)``."""
        return self._shaped(self.base.mean)

    @property
    def mode(self) -> Tensor:
        """``(*batch_shape, *event_shape)``."""
        return self._shaped(self.base.mode)

    @property
    def variance(self) -> Tensor:
        """``(*batch_shape, *event_shape)``."""
        return self._shaped(self.base.variance)

    def entropy(self) -> Tensor:
        """``batch_shape``, in nats."""
        empty = not self.batch_shape.numel()
        return self.base.mean.new_zeros(self.batch_shape) if empty else self.base.entropy().reshape(self.batch_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """``(*sample_shape, *batch_shape, *event_shape)``."""
        return self._shaped(self.base.sample(torch.Size(sample_shape)))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """As :meth:`sample`, and passes gradients."""
        return self._shaped(self.base.rsample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, ``(..., *batch_shape)``, in nats."""
        shape = self.batch_shape + self.event_shape
        value = value.expand(torch.broadcast_shapes(value.shape, shape))
        drawn = value.shape[: value.dim() - len(shape)]
        if not value.numel():
            return value.new_zeros(drawn + self.batch_shape)
        flat = value.reshape((*drawn, self.batch_shape.numel(), *self.event_shape))
        return self.base.log_prob(flat).reshape(drawn + self.batch_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> dist.TorchDistribution:
        """The distribution with further batch dimensions, as Pyro's plates need them."""
        batch_shape = torch.Size(batch_shape)
        return self if batch_shape == self.batch_shape else dist.ExpandedDistribution(self, batch_shape)

    def _shaped(self, flat: Tensor) -> Tensor:
        drawn = flat.shape[: flat.dim() - 1 - len(self.event_shape)]
        return flat.reshape(drawn + self.batch_shape + self.event_shape)
