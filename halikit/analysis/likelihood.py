"""``log p(x)`` of each datum under the decoder's joint (Eq. 4), for hierarchies of any depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from halikit.analysis.importance import Draws, Proposal, behind, bound_log_density, check_request, choose_paths
from halikit.analysis.quantity import Kind, Quantity
from halikit.analysis.reconstruction import observed_decoder
from halikit.hierarchy import Hierarchy
from halikit.joints import with_hard_classes
from halikit.kernels import Composite, DensityKernel, Gaussian, LinearGaussian, compose
from halikit.priors import Prior
from halikit.spaces import Space
from halikit.utils.random import seeded

__all__ = ["LogLikelihood", "log_likelihood"]


@dataclass(frozen=True)
class LogLikelihood:
    """``log p(x) = log ∫ p(z_L) ∏ p(z_{l−1}|z_l) p(x|z_1) dz`` of each datum (Eq. 4).

    Attributes:
        values: ``(n,)``, in nats; densities are over x in its own units.
        kind: Whether each value is exact or a stochastic lower bound.
        effective_sample_sizes: ``(n,)``, between 1 and the number of draws; ``None`` where values are exact.
        draws: The draws of ``z_1 … z_L`` for each datum; ``None`` where values are exact.
    """

    values: Tensor
    kind: Kind
    effective_sample_sizes: Tensor | None = None
    draws: Draws | None = None

    @property
    def mean(self) -> Quantity:
        """``E_{q(x)}[log p(x)]`` in nats, an estimate or a bound, with its standard error over data and draws."""
        return Quantity.mean_over_data(self.values, self.kind, "nats")

    @property
    def num_draws(self) -> int:
        """Draws of ``z_1 … z_L`` for each datum; 0 where values are exact."""
        return self.draws.number if self.draws else 0

    def as_dict(self) -> dict[str, Any]:
        """Mean, values of each datum and the draws behind them, as JSON takes them."""
        sizes, draws = self.effective_sample_sizes, self.draws
        return {
            "mean": self.mean.as_dict(),
            "values": self.values.tolist(),
            "kind": self.kind,
            "num_draws": self.num_draws,
            "effective_sample_size": draws.effective_sample_size if draws else None,
            "effective_sample_sizes": None if sizes is None else sizes.tolist(),
            **behind(draws),
        }

    def __str__(self) -> str:
        return f"{self.mean}  {self.draws or 'exact for each datum'}"


@torch.no_grad()
def log_likelihood(
    hierarchy: Hierarchy,
    x: Tensor,
    *,
    num_samples: int | None = None,
    most: int = 4096,
    tolerance: float = 0.5,
    proposal: Proposal = "mixture",
    scale: float | None = None,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> LogLikelihood:
    """``log p(x)`` of each datum.

    Linear-Gaussian decoders with a normal prior give it exactly. For others it is a lower bound in expectation: the
    logarithm of a mean of importance weights over draws of ``z_1 … z_L``. By default the encoder and the decoder's own
    joint draw half of them each, weighted by the density of the mixture of whole paths. The decoder draws all of them
    where the encoder, or a kernel of the decoder above ``p(x|z_1)``, has no density.

    Args:
        hierarchy: A hierarchy in evaluation mode.
        x: ``(n, *shape of x)``.
        num_samples: Draws for each datum; by default they are doubled, from 64 on, until the mean over data changes by
            less than ``tolerance``.
        most: The largest number that doubling comes to.
        tolerance: In nats.
        proposal: ``"mixture"``, ``"encoder"``, ``"decoder"``, or a kernel from x through ``z_1 … z_L``.
        scale: Standard deviation of the Gaussian around a deterministic ``p(x|z_1)``, in units of x.
        context: The context of the data, ``(n, …)`` or ``(1, …)``, if kernels take one.
        generator: Source of randomness.
        on_progress: Called with (paths drawn, paths in total at most).

    Raises:
        NoDensityError: If a density that is needed does not exist, and ``scale`` does not give one.
        InputError: If the proposal is none of the names, ``scale`` is given though ``p(x|z_1)`` has a density, there
            are no data, or a number of draws is below 1.
    """
    check_request(x, num_samples=num_samples, most=most)
    hierarchy = hierarchy.conditioned(context)
    downs = observed_decoder(hierarchy, scale)
    decoder, prior = compose(*downs), _normal(hierarchy.prior, x)
    if isinstance(decoder, LinearGaussian) and prior is not None:
        marginal = decoder.marginal(prior)
        exact = torch.distributions.MultivariateNormal(marginal.mean, marginal.covariance)
        return LogLikelihood(exact.log_prob(x.flatten(1)), "exact")
    start = _PriorKernel(hierarchy.prior)
    encoder = compose(*reversed(with_hard_classes([link.up for link in hierarchy], hierarchy.prior)))
    # A Composite by itself: compose would join what is linear-Gaussian.
    joint = Composite(start, *reversed(downs))
    bounds = bound_log_density(
        joint,
        x,
        x.new_zeros(1, len(x)),
        choose_paths(joint, encoder, proposal),
        num_draws=num_samples,
        most=most,
        tolerance=tolerance,
        context=hierarchy.context,
        generator=generator,
        on_progress=on_progress,
    )
    return LogLikelihood(bounds.values[0], "lower bound", bounds.effective_sample_sizes[0], bounds.draws)


class _PriorKernel(DensityKernel):
    """``p(z_L)`` as a kernel whose source says nothing, so that the decoder's joint is a composition of kernels."""

    def __init__(self, prior: Prior) -> None:
        super().__init__(Space("nothing", ()), prior.space)
        self.prior = prior
        with seeded(0, prior.device):
            self.integer_draws = not prior.sample(1).is_floating_point()

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        """The prior, for each element of ``given``."""
        return self.prior()

    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A sample of the prior for each element of ``given``."""
        draws = self.prior.sample(len(given), generator=generator)
        return draws if self.integer_draws else draws.to(given)


def _normal(prior: Prior, like: Tensor) -> Gaussian | None:
    """The prior as a Gaussian on flattened states, if it is normal with independent elements."""
    distribution = prior()
    base = distribution.base_dist if isinstance(distribution, dist.Independent) else distribution
    if not isinstance(base, torch.distributions.Normal):
        return None
    return Gaussian(distribution.mean.flatten().to(like), distribution.variance.flatten().diag().to(like))
