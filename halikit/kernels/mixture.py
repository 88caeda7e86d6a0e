"""Mixtures of Gaussians with diagonal covariances."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from halikit.kernels.kernel import DensityKernel, network_takes_context
from halikit.kernels.scales import SLEEP_SCALE, bounded_scale, check_max_scale
from halikit.spaces import Space
from halikit.utils.tensors import at_least_single

__all__ = ["DiagonalMixture", "MixtureKernel"]


class DiagonalMixture(dist.MixtureOfDiagNormals):
    """Pyro's mixture of diagonal Gaussians, with draws whose gradient is finite in any dimension.

    Pyro transports mass between the components through the gap between them. That gradient is wrong for one dimension,
    vanishes in tens of dimensions, where no draw is in the gap, and is not a number in a hundred dimensions or if two
    means are equal. Here a draw ``z_c = m_c + s_c ε`` of component ``c`` passes the exact gradient to ``m_c`` and
    ``s_c``. To the weights ``π`` it passes ``½ (Σ_k z_k dπ_k + (z_c − Σ_k π_k z_k) d log π_c)``, with the same ``ε`` in
    all components: exact for functions of the draw that are quadratic between the components, and otherwise of second
    order (Liu et al. 2023, "Bridging discrete and backpropagation").

    Args:
        locs: Means, ``(..., K, D)``.
        coord_scale: Standard deviations, ``(..., K, D)``, positive.
        component_logits: Unnormalised log-weights, ``(..., K)``.
    """

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, ``(*sample_shape, ..., D)``."""
        component = self.categorical.sample(torch.Size(sample_shape)).unsqueeze(-1)
        noise = torch.randn_like(self.locs.expand(*component.shape, self.dim)[..., :1, :].squeeze(-2))
        means, scales = (x.expand(*component.shape[:-1], *x.shape[-2:]) for x in (self.locs, self.coord_scale))
        all_draws = means + scales * noise.unsqueeze(-2)
        draw = all_draws.gather(-2, component.unsqueeze(-1).expand(*component.shape, self.dim)).squeeze(-2)
        weights = self.categorical.probs.expand(*component.shape[:-1], -1)
        log_weight = self.categorical.logits.expand_as(weights).gather(-1, component)
        ends = all_draws.detach()
        centre = (weights.detach().unsqueeze(-1) * ends).sum(-2)
        change = (weights - weights.detach()).unsqueeze(-1).mul(ends).sum(-2)
        change = change + (log_weight - log_weight.detach()) * (draw.detach() - centre)
        return draw + 0.5 * change


class MixtureKernel(DensityKernel):
    """``T_{w|v} = Σ_k π_k(v) N(m_k(v), σ_k(v)²)``, each component with independent elements.

    The network returns ``components × (2 · target.size + 1)`` elements for each sample, in any shape: for each
    component its means, its raw scales and the logarithm of its weight, which need not be normalised. The scales are
    bounded as those of a :class:`~halikit.GaussianKernel`. :meth:`mean` is the mean of the mixture, ``Σ_k π_k m_k``,
    which may be where no draw is.

    Args:
        source: Space of ``v``.
        target: Space of ``w``.
        network: Any module from ``(n, *source.shape)`` to ``n × components × (2 · target.size + 1)`` elements.
        components: K, at least 1.
        max_scale: Upper bound of the standard deviation of a component.

    Raises:
        ValueError: If there is no component or the upper bound is not valid.
    """

    def __init__(
        self,
        source: Space,
        target: Space,
        network: nn.Module,
        *,
        components: int = 4,
        max_scale: float | None = None,
    ) -> None:
        super().__init__(source, target)
        if components < 1:
            raise ValueError(f"{self}: a mixture has one component or more, got {components}")
        check_max_scale(self, max_scale)
        self.network, self.takes_context = network, network_takes_context(network)
        self.components, self.max_scale = components, max_scale

    def parameters_of(self, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means and scales ``(n, K, target.size)``, and logits ``(n, K)``, for ``given`` ``(n, *source.shape)``.

        Raises:
            ValueError: If the network gives another number of elements.
        """
        size, n = self.target.size, len(given)
        out = self.call_network(self.network, given).to(self.dtype_for(given))
        if out.numel() != n * self.components * (2 * size + 1):
            raise ValueError(
                f"the network of {self} gives {tuple(out.shape)} for a batch of {n}; {self.components} components "
                f"over {self.target} need {self.components} × (2 × {size} + 1) elements per sample"
            )
        out = at_least_single(out).reshape(n, self.components, 2 * size + 1)
        means, raw, logits = out.split([size, size, 1], -1)
        return means, bounded_scale(raw, self.max_scale), logits.squeeze(-1)

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        """The mixture over ``target``, event shape ``target.shape``."""
        mixture = DiagonalMixture(*self.parameters_of(given))
        if self.target.rank == 1:
            return mixture
        shape = torch.Size(self.target.shape)
        return dist.TransformedDistribution(
            mixture, [dist.transforms.ReshapeTransform(mixture.event_shape, shape)]
        )

    def mean(self, given: Tensor) -> Tensor:
        """The mean of the mixture, ``(..., *target.shape)``."""
        means, _, logits = self.parameters_of(given)
        mean = (logits.softmax(-1).unsqueeze(-1) * means).sum(-2)
        return mean.reshape(len(given), *self.target.shape)

    def sleep_loss(self, target: Tensor, given: Tensor) -> Tensor:
        """The negative log-density, ``(n,)``, in nats per element; scales below 0.1 are replaced by 0.1.

        Args:
            target: ``(n, *target.shape)``.
            given: ``(n, *source.shape)``.
        """
        means, scales, logits = self.parameters_of(given)
        mixture = DiagonalMixture(means, scales.clamp(min=SLEEP_SCALE), logits)
        return -mixture.log_prob(at_least_single(target).reshape(len(target), -1)) / self.target.size
