"""Kernels with a density (paper, section 3.1): all that they need is the distribution over the target."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from halikit.kernels.kernel import Kernel, Representative
from halikit.utils.modes import evaluating
from halikit.utils.random import drawing_from
from halikit.utils.tensors import at_least_single

__all__ = ["DensityKernel"]


class DensityKernel(Kernel):
    """A kernel with a density: :meth:`forward` returns it as a Pyro distribution.

    Subclasses implement :meth:`forward`; samples and mean are then those of the distribution. If the distribution knows
    no finite mean, its mode stands for it, then its median, then the draw at fixed noise.
    """

    @abstractmethod
    def forward(self, given: Tensor) -> TorchDistributionMixin:
        """The distribution over ``target``, batch shape ``(...)``, event shape ``target.shape``.

        Args:
            given: ``(..., *source.shape)``.
        """

    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A sample of :meth:`forward`, ``(..., *target.shape)``; it passes gradients if it is reparametrised."""
        return _drawn(self(given), generator, given.device)

    def sample_from(self, distribution: Any, given: Tensor, generator: torch.Generator | None) -> Tensor:
        """As :meth:`sample`, ``(n, *target.shape)``, from the distribution that :meth:`forward` has given already."""
        if type(self).sample is DensityKernel.sample:
            return _drawn(distribution, generator, given.device)
        return self.sample(given, generator=generator)

    def mean(self, given: Tensor) -> Tensor:
        """The mean of :meth:`forward`, ``(..., *target.shape)``, or what :attr:`representative` says."""
        found = _REPRESENTATIVES[self.representative](self(given))
        return super().mean(given) if found is None else found

    def sleep_loss(self, target: Tensor, given: Tensor) -> Tensor:
        """The negative log-density of ``target``, ``(n,)``, in nats per element.

        Args:
            target: ``(n, *target.shape)``.
            given: ``(n, *source.shape)``.
        """
        return -at_least_single(self.log_prob(target, given)) / self.target.size

    @property
    def representative(self) -> Representative:
        """What :meth:`mean` returns: the first that the distribution knows of mean, mode and median."""
        if type(self).mean is not DensityKernel.mean:
            return "mean"
        if self._representative is None:
            self._representative = self._find_representative()
        return self._representative

    # Found at the first use.
    _representative: Representative | None = None

    def _find_representative(self) -> Representative:
        like = next(self.parameters(), torch.empty(0))
        kernel = self if self.context is None else self.conditioned(self.context[:1])
        with evaluating(self), torch.no_grad():
            distribution = kernel(like.new_zeros(2, *self.source.shape))
            for name, representative_of in _REPRESENTATIVES.items():
                found = representative_of(distribution)
                if found is not None and found.isfinite().all():
                    return name
        return "draw at fixed noise"


def _drawn(distribution: Any, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """A draw of a distribution, which passes gradients if it can."""
    with drawing_from(generator, device):
        return distribution.rsample() if distribution.has_rsample else distribution.sample()


def _mean_of(distribution: Any) -> Tensor | None:
    try:
        return distribution.mean
    except NotImplementedError:
        return None


def _mode_of(distribution: Any) -> Tensor | None:
    try:
        return distribution.mode
    except NotImplementedError:
        return None


def _median_of(distribution: Any) -> Tensor | None:
    """The median of each element, where the elements are independent."""
    while isinstance(distribution, torch.distributions.Independent):
        distribution = distribution.base_dist
    if distribution.event_shape:
        return None
    try:
        return distribution.icdf(torch.tensor(0.5))
    except NotImplementedError:
        return None


_REPRESENTATIVES: dict[Representative, Callable[[Any], Tensor | None]] = {
    "mean": _mean_of,
    "mode": _mode_of,
    "median": _median_of,
    "draw at fixed noise": lambda distribution: None,
}
