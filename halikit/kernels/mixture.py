"""Mixtures of Gaussians with diagonal covariances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from halikit.kernels.density import DensityKernel
from halikit.kernels.kernel import network_takes_context
from halikit.kernels.scales import SLEEP_SCALE, bounded_scale, check_max_scale
from halikit.spaces import Space
from halikit.utils.tensors import at_least_single

__all__ = ["GaussianMixture", "MixtureKernel"]


class GaussianMixture(dist.TorchDistribution):
    """A mixture of diagonal Gaussians over states of any shape, whose draws pass a gradient to every parameter.

    ``pyro.distributions.MixtureOfDiagNormals`` moves mass through the gap between the components. Its gradient is wrong
    in one dimension, vanishes in tens of dimensions, where no draw is in the gap, and is not a number in a hundred
    dimensions or for equal means. Here a draw ``z_c = m_c + s_c ε`` of component ``c`` passes the exact gradient to
    ``m_c`` and ``s_c``. To the weights ``π`` it passes ``½ (Σ_k z_k dπ_k + (z_c − Σ_k π_k z_k) d log π_c)``, with the
    same ``ε`` in all ``z_k``. This is exact for functions of the draw that are quadratic, and of second order for
    others. It is the estimator of "Bridging discrete and backpropagation" (Liu et al. 2023), with Gaussians in place of
    one-hot vectors. An unbiased gradient, along paths parallel to the axes, has 3 to 100 times its noise from ten
    dimensions on.

    Args:
        means: ``(*batch_shape, K, D)``.
        scales: Standard deviations, ``(*batch_shape, K, D)``, positive.
        logits: Log-weights, which need not be normalised, ``(*batch_shape, K)``.
        event_shape: Shape of a state, of ``D`` elements; ``(D,)`` by default.
    """

    arg_constraints = {"means": constraints.real, "scales": constraints.positive, "logits": constraints.real}  # noqa: RUF012
    has_rsample = True

    def __init__(self, means: Tensor, scales: Tensor, logits: Tensor, event_shape: Sequence[int] | None = None) -> None:
        self.means, self.scales, self.logits = means, scales, logits.log_softmax(-1)
        event = means.shape[-1:] if event_shape is None else torch.Size(event_shape)
        super().__init__(logits.shape[:-1], event, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """All of the space."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """``Σ_k π_k m_k``, ``(*batch_shape, *event_shape)``."""
        return self._weighted(self.means)

    @property
    def variance(self) -> Tensor:
        """The variance of each element, within and between the components, ``(*batch_shape, *event_shape)``."""
        return self._weighted(self.scales.square() + self.means.square()) - self.mean.square()

    def _weighted(self, values: Tensor) -> Tensor:
        mean = (self.logits.exp().unsqueeze(-1) * values).sum(-2)
        return mean.reshape(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> GaussianMixture:
        """The distribution with further batch dimensions."""
        batch, parameters = torch.Size(batch_shape), self.means.shape[-2:]
        means, scales = self.means.expand(batch + parameters), self.scales.expand(batch + parameters)
        return GaussianMixture(means, scales, self.logits.expand(batch + parameters[:1]), self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, ``(..., *batch_shape)``, in nats."""
        flat = value.reshape((*value.shape[: value.dim() - len(self.event_shape)], 1, self.means.shape[-1]))
        residual = (flat - self.means) / self.scales
        elements = -0.5 * residual.square() - self.scales.log() - 0.5 * math.log(2 * math.pi)
        return (self.logits + elements.sum(-1)).logsumexp(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, ``(*sample_shape, *batch_shape, *event_shape)``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        log_weights = self.logits.expand(shape + self.logits.shape[-1:])
        weights = log_weights.exp()
        component = torch.distributions.Categorical(probs=weights.detach(), validate_args=False).sample().unsqueeze(-1)
        noise = self.means.new_empty(shape + self.means.shape[-1:]).normal_()
        ends = self.means + self.scales * noise.unsqueeze(-2)
        draw = ends.gather(-2, component.unsqueeze(-1).expand((*component.shape, ends.shape[-1]))).squeeze(-2)
        if self.logits.requires_grad:
            draw = draw + 0.5 * _change(weights, log_weights.gather(-1, component), ends.detach(), draw.detach())
        return draw.reshape(shape + self.event_shape)


def _change(weights: Tensor, log_weight: Tensor, ends: Tensor, draw: Tensor) -> Tensor:
    """Zero, with twice the gradient to the weights; see :class:`GaussianMixture`."""
    centre = (weights.detach().unsqueeze(-1) * ends).sum(-2)
    direct = ((weights - weights.detach()).unsqueeze(-1) * ends).sum(-2)
    return direct + (log_weight - log_weight.detach()) * (draw - centre)


class MixtureKernel(DensityKernel):
    """``T_{w|v} = Σ_k π_k(v) N(m_k(v), σ_k(v)²)``, each component with independent elements.

    The network returns ``components × (2 · target.size + 1)`` elements for each sample, in any shape: for each
    component its means, its raw scales and the logarithm of its weight, which need not be normalised. The scales are
    bounded as those of a :class:`~halikit.GaussianKernel`. The mean is ``Σ_k π_k m_k``, which may be where no draw is.
    Draws pass a gradient to every output of the network; see :class:`GaussianMixture`.

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
        return GaussianMixture(*self.parameters_of(given), self.target.shape)

    def sleep_loss(self, target: Tensor, given: Tensor) -> Tensor:
        """The negative log-density, ``(n,)``, in nats per element; scales below 0.1 are replaced by 0.1.

        Args:
            target: ``(n, *target.shape)``.
            given: ``(n, *source.shape)``.
        """
        means, scales, logits = self.parameters_of(given)
        mixture = GaussianMixture(means, scales.clamp(min=SLEEP_SCALE), logits, self.target.shape)
        return -mixture.log_prob(at_least_single(target)) / self.target.size
