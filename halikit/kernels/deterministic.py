"""Dirac kernels: deterministic functions as Markov kernels (Table 4)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from halikit.kernels.gaussian import GaussianKernel
from halikit.kernels.kernel import Kernel, network_takes_context
from halikit.spaces import Space

__all__ = ["DeterministicKernel"]


class DeterministicKernel(Kernel):
    """``T_{w|v} = δ(w − f(v))``. It can be sampled, but has no density.

    ``p(x|z_1)`` of the paper is such a kernel: its network in Table 4 ends in tanh, without a Gaussian layer.

    Args:
        source: Space of ``v``.
        target: Space of ``w``.
        network: ``f``, any module from ``(n, *source.shape)`` to ``n × target.size`` elements.
    """

    def __init__(self, source: Space, target: Space, network: nn.Module) -> None:
        super().__init__(source, target)
        self.network, self.takes_context = network, network_takes_context(network)

    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """``f(given)``, ``(..., *target.shape)``; nothing is random."""
        return self.run_network(self.network, given)

    def mean(self, given: Tensor) -> Tensor:
        """``f(given)``, ``(..., *target.shape)``."""
        return self.sample(given)

    def with_noise(self, scale: float | Literal["fitted"]) -> GaussianKernel:
        """The Gaussian kernel ``N(f(v), scale²)`` with the same network, which has a density (Eq. 5).

        Args:
            scale: Standard deviation in the units of the target, positive; or ``"fitted"`` for a trained one, which is
                in (0.001, 1) for images (they are in [−1, 1]).
        """
        cap = 1.0 if scale == "fitted" and self.target.is_image else None
        noisy = GaussianKernel(self.source, self.target, self.network, scale=scale, max_scale=cap)
        return noisy.train(self.training)
