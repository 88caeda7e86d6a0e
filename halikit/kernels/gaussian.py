"""Conditional Gaussians, the kernels of the paper (section 4, Table 4: "Gaussian layer")."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from halikit.kernels.density import DensityKernel
from halikit.kernels.gauge import Gauge, Normalise, check_evaluates, check_gauge
from halikit.kernels.kernel import network_takes_context
from halikit.kernels.scales import MIN_SCALE, SLEEP_SCALE, bounded_scale
from halikit.spaces import Space
from halikit.utils.tensors import at_least_single, per_element

__all__ = ["Gauge", "GaussianKernel", "Moments"]


class Moments(NamedTuple):
    """Mean and standard deviation of a Gaussian, each ``(..., *target.shape)`` or broadcastable to it."""

    mean: Tensor
    scale: Tensor


class GaussianKernel(DensityKernel):
    r"""``T_{w|v} = N(m(v), σ(v)²)`` with independent elements.

    The network returns the mean and the raw scale ``a``, concatenated: ``(n, 2C, H, W)`` for feature maps, ``(n, 2D)``
    for vectors. It returns the mean alone if the scale is fixed or fitted. The scale is bounded by a smooth function:
    ``σ = 0.001 + (max_scale − 0.001) · sigmoid(a)``, or ``σ = exp(3 tanh(a/3))`` without ``max_scale``.

    A gauge fixes the location and the scale of a latent. Nothing else fixes them for an intermediate latent: without a
    gauge, encoder and decoder drift and do not couple. ``"standardised"`` batch-normalises the mean;
    ``"variance_preserving"`` samples ``sqrt(1 − σ²) · norm(m) + σ ε``. Both use batch statistics in training mode and
    running statistics in evaluation mode.

    Args:
        source: Space of ``v``.
        target: Space of ``w``.
        network: Any module from ``(n, *source.shape)`` to means and raw scales, or to means.
        scale: ``"diagonal"`` for one scale per element; ``"isotropic"`` for one per sample, from the mean of its raw
            scales; ``"fitted"`` for a single trained parameter; or a fixed number.
        gauge: ``None``, ``"standardised"`` or ``"variance_preserving"``.
        max_scale: Upper bound of a learned scale. A variance-preserving kernel needs one below 1.

    Raises:
        ValueError: If the scale, the gauge or the upper bound is not valid.
    """

    def __init__(
        self,
        source: Space,
        target: Space,
        network: nn.Module,
        *,
        scale: Literal["diagonal", "isotropic", "fitted"] | float = "diagonal",
        gauge: Gauge | None = None,
        max_scale: float | None = None,
    ) -> None:
        super().__init__(source, target)
        fixed = not isinstance(scale, str)
        if fixed and not float(scale) > 0:
            raise ValueError(
                f"{self}: a fixed scale must be positive, got {scale}; for a Dirac use DeterministicKernel"
            )
        if not fixed and scale not in ("diagonal", "isotropic", "fitted"):
            raise ValueError(f"{self}: scale is 'diagonal', 'isotropic', 'fitted' or a number, got {scale!r}")
        check_gauge(gauge, self)
        if max_scale is not None and (fixed or not max_scale > MIN_SCALE):
            raise ValueError(
                f"{self}: max_scale bounds a learned scale, above {MIN_SCALE}; got {max_scale} for scale={scale}"
            )
        cap = float(scale) if fixed else max_scale
        if gauge == "variance_preserving" and (cap is None or not cap < 1):
            raise ValueError(f"{self}: the variance-preserving gauge needs a scale bounded below 1, got {cap}")
        self.network, self.takes_context = network, network_takes_context(network)
        self.scale_form = scale
        self.gauge = gauge
        self.max_scale = max_scale
        self.raw_scale = nn.Parameter(torch.zeros(())) if scale == "fitted" else None
        self.norm = Normalise(target) if gauge else None

    def with_gauge(self, gauge: Gauge) -> GaussianKernel:
        """The kernel of the same parameters with a gauge.

        Raises:
            ValueError: If the gauge does not fit the scale.
        """
        made = GaussianKernel(
            self.source, self.target, self.network, scale=self.scale_form, gauge=gauge, max_scale=self.max_scale
        )
        made.raw_scale = self.raw_scale
        return made.train(self.training)

    def moments(self, given: Tensor) -> Moments:
        """Mean and scale, after the gauge. In training mode a gauge uses the statistics of this batch.

        Args:
            given: ``(..., *source.shape)``.

        Raises:
            ValueError: If there is a gauge and a training batch has only one sample.
        """
        if self.raw_scale is not None:
            mean, scale = self.run_network(self.network, given), bounded_scale(self.raw_scale, self.max_scale)
        elif isinstance(self.scale_form, str):
            mean, raw = self.run_network(self.network, given, 2)
            if self.scale_form == "isotropic" and self.target.rank:
                raw = raw.mean(tuple(range(-self.target.rank, 0)), keepdim=True)
            scale = bounded_scale(raw, self.max_scale)
        else:
            mean = self.run_network(self.network, given)
            scale = mean.new_full((), self.scale_form)  # new_tensor would synchronise with a GPU
        if self.norm is not None:
            mean = self.norm(mean)
        if self.gauge == "variance_preserving":
            mean = mean * (1 - scale.square()).sqrt()
        return Moments(mean, scale)

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        """The Gaussian over ``target``, event shape ``target.shape``.

        Raises:
            RuntimeError: If there is a gauge in training mode, in which batch statistics couple the samples.
        """
        if self.gauge:
            check_evaluates(self)
        mean, scale = self.moments(given)
        return dist.Normal(mean, scale.expand_as(mean)).to_event(self.target.rank)

    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A reparametrised sample ``m + σ ε``, ``(..., *target.shape)``."""
        mean, scale = self.moments(given)
        noise = torch.empty_like(mean).normal_(generator=generator)
        return torch.addcmul(mean, scale, noise)

    def sleep_loss(self, target: Tensor, given: Tensor) -> Tensor:
        """The negative log-density of the Gaussian with these moments, ``(n,)``, in nats per element.

        Scales below 0.1 are replaced by 0.1.

        Args:
            target: ``(n, *target.shape)``.
            given: ``(n, *source.shape)``. In training mode a gauge uses the statistics of this batch.
        """
        mean, scale = self.moments(given)
        scale = at_least_single(scale).clamp(min=SLEEP_SCALE)
        residual = at_least_single(target) - at_least_single(mean)
        return per_element(0.5 * (residual / scale).square() + scale.log()) + 0.5 * math.log(2 * math.pi)

    def mean(self, given: Tensor) -> Tensor:
        """The conditional mean, ``(..., *target.shape)``."""
        return self.moments(given).mean

    def scale(self, given: Tensor) -> Tensor:
        """The conditional standard deviation, ``(..., *target.shape)``."""
        mean, scale = self.moments(given)
        return scale.expand_as(mean)
