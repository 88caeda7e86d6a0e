"""Dirac kernels: a function seen as a Markov kernel."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from halikit.kernels.gaussian import GaussianKernel
from halikit.kernels.kernel import Kernel
from halikit.spaces import Space

__all__ = ["DeterministicKernel"]


class DeterministicKernel(Kernel):
    """``T_{w|v} = δ(w − f(v))``: sampling only, no density.

    The paper's decoder of images is one in the game: Table 4 ends it in tanh with no Gaussian layer.

    Args:
        source: Space conditioned on.
        target: Space measured.
        network: ``f``, any module from ``(n, *source.shape)`` to ``n × target.size`` elements.
    """

    def __init__(self, source: Space, target: Space, network: nn.Module) -> None:
        super().__init__(source, target)
        self.network = network

    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """``f(given)``, ``(..., *target.shape)``; there is nothing to draw."""
        return self.run_network(self.network, given)

    def mean(self, given: Tensor) -> Tensor:
        """``f(given)``, ``(..., *target.shape)``."""
        return self.sample(given)

    def with_noise(self, scale: float | Literal["fitted"]) -> GaussianKernel:
        """The Gaussian ``N(f(v), scale²)`` on the same network: what gives a density where one is asked for (Eq. 5).

        Args:
            scale: Standard deviation, positive, in the target's units; or one to be fitted, in (0.001, 1) for images,
                which lie in [−1, 1].
        """
        cap = 1.0 if scale == "fitted" and self.target.is_image else None
        noisy = GaussianKernel(self.source, self.target, self.network, scale=scale, max_scale=cap)
        return noisy.train(self.training)
