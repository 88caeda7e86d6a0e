"""Priors ``p(z_L)`` on the top space."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from halikit.spaces import Space
from halikit.utils.random import drawing_from

__all__ = ["Prior"]


class Prior(nn.Module):
    """``p(z_L)``: a standard normal on the top space, unless a distribution is given.

    Args:
        space: The top space.
        distribution: Distribution of one state: empty batch shape, event shape ``space.shape``.

    Raises:
        ValueError: If the distribution has other shapes.
    """

    _origin: Tensor

    def __init__(self, space: Space, distribution: dist.TorchDistribution | None = None) -> None:
        super().__init__()
        self.space = space
        self.register_buffer("_origin", torch.zeros(()), persistent=False)
        if distribution is not None and (distribution.batch_shape, distribution.event_shape) != ((), space.shape):
            raise ValueError(
                f"the prior must be over {space}: empty batch shape and event shape {space.shape}, got "
                f"{tuple(distribution.batch_shape)} and {tuple(distribution.event_shape)}"
            )
        self.distribution = distribution

    @property
    def device(self) -> torch.device:
        """Device of the samples."""
        return self._origin.device

    @property
    def dtype(self) -> torch.dtype:
        """Element type of samples of floats."""
        return self._origin.dtype

    def forward(self) -> dist.TorchDistribution:
        """The distribution over one state, event shape ``space.shape``."""
        if self.distribution is not None:
            return self.distribution
        return (
            dist.Normal(self._origin, torch.ones_like(self._origin)).expand(self.space.shape).to_event(self.space.rank)
        )

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Samples ``(n, *space.shape)``, by torch's global generator if none is given."""
        if self.distribution is not None:
            with drawing_from(generator, torch.device("cpu")):
                draw: Tensor = self.distribution.sample(torch.Size([n]))
            return draw.to(self._origin) if draw.is_floating_point() else draw.to(self._origin.device)
        return self._origin.new_empty(n, *self.space.shape).normal_(generator=generator)
