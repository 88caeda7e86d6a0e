"""The gauge for any kernel of section 3.1; see :mod:`halikit.kernels.gauge`. The paper has none."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from halikit.kernels.density import DensityKernel
from halikit.kernels.gauge import Gauge, Normalise, check_evaluates, check_gauge
from halikit.kernels.gaussian import GaussianKernel
from halikit.kernels.kernel import Kernel, Representative
from halikit.utils.modes import evaluating
from halikit.utils.random import seeded

__all__ = ["GaugedDensityKernel", "GaugedKernel", "gauged"]

# The least share 1 − σ² of the variance that is left to the mean.
_LEAST_SHARE = 1e-6


def gauged(kernel: Kernel, gauge: Gauge) -> Kernel:
    """The kernel with a gauge: location and scale of its draws are fixed, so that a level above and one below couple.

    With ``m`` and ``σ`` the mean and the standard deviation of the kernel, ``"standardised"`` draws
    ``draw − m + norm(m)``, and ``"variance_preserving"`` draws ``draw − m + sqrt(1 − σ²) · norm(m)``. ``norm`` uses
    batch statistics in training mode and running ones in evaluation mode. A kernel that does not know its mean has its
    draws normalised instead. Like the gauge of a :class:`~halikit.GaussianKernel`, it has densities in evaluation mode
    alone, and refuses a training batch of one.

    Args:
        kernel: Any kernel of continuous states, in no link. ``σ`` is that of its distribution; a kernel
            without a density gives it by a method ``stddev(given)``.
        gauge: ``"standardised"`` or ``"variance_preserving"``. The latter needs a known mean and ``σ`` below 1.

    Returns:
        A kernel of the same parameters; ``gauged(GaussianKernel(…), gauge)`` is ``GaussianKernel(…, gauge=gauge)``.

    Raises:
        ValueError: If the gauge is unknown or the kernel cannot have it.
    """
    check_gauge(gauge, kernel)
    if kernel.gauge or gauge is None:
        raise ValueError(f"{kernel} has a {kernel.gauge} gauge already" if kernel.gauge else "gauged needs a gauge")
    if isinstance(kernel, GaussianKernel):
        return kernel.with_gauge(gauge)
    if kernel.integer_draws or _is_discrete(kernel):
        raise ValueError(f"{kernel} draws discrete states, whose location and scale are fixed: it needs no gauge")
    if gauge == "variance_preserving":
        _check_variance_preserving(kernel)
    made = GaugedDensityKernel(kernel, gauge) if isinstance(kernel, DensityKernel) else GaugedKernel(kernel, gauge)
    return made.train(kernel.training)


class _Map(NamedTuple):
    """A gauge as an affine map from draws to states, ``factor · draw + shift``; each broadcasts over draws."""

    factor: Tensor
    shift: Tensor

    def __call__(self, draw: Tensor) -> Tensor:
        return self.factor * draw + self.shift


class _GaugeMap(nn.Module):
    """Makes the map of a batch, for both kinds of gauged kernels.

    Args:
        kernel: The kernel without a gauge.
        gauge: The gauge.
    """

    def __init__(self, kernel: Kernel, gauge: Gauge) -> None:
        super().__init__()
        self.norm = Normalise(kernel.target)
        self.preserves_variance = gauge == "variance_preserving"

    def by_mean(self, mean: Tensor, scale: Tensor | None) -> _Map:
        """The map for means ``(n, *shape)`` and, if variance is preserved, standard deviations."""
        normalised: Tensor = self.norm(mean)
        if scale is not None:
            normalised = normalised * (1 - scale.square()).clamp(min=_LEAST_SHARE).sqrt()
        return _Map(mean.new_ones(()), normalised - mean)

    def by_draws(self, draws: Tensor) -> _Map:
        """The map that normalises draws ``(n, *shape)``; in training their statistics enter the running ones."""
        if self.training:
            self.norm(draws)
        mean, scale = self.norm.statistics(draws)
        return _Map(1 / scale, -mean / scale)


class _Gauged(Kernel):
    """A kernel with a gauge.

    Args:
        kernel: The kernel.
        gauge: Its gauge; see :func:`gauged`.
    """

    def __init__(self, kernel: Kernel, gauge: Gauge) -> None:
        super().__init__(kernel.source, kernel.target)
        self.kernel, self.gauge, self.takes_context = kernel, gauge, kernel.takes_context
        self.map = _GaugeMap(kernel, gauge)

    @property
    def representative(self) -> Representative:
        """That of the kernel without the gauge."""
        return self.kernel.representative

    @property
    def has_sleep_loss(self) -> bool:
        """Whether the kernel without the gauge has one."""
        return self.kernel.has_sleep_loss


class GaugedKernel(_Gauged):
    """A kernel without a density, with a gauge; the arguments are those of :func:`gauged`."""

    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A draw under the gauge, ``(n, *target.shape)``."""
        kernel = self.kernel.conditioned(self.context)
        draw = kernel.sample(given, generator=generator)
        return self._map(kernel, given, draw)(draw)

    def mean(self, given: Tensor) -> Tensor:
        """The mean, or what stands for it, under the gauge, ``(n, *target.shape)``."""
        kernel = self.kernel.conditioned(self.context)
        mean = kernel.mean(given)
        return (self._map(kernel, given, mean) if kernel.knows_mean else _by_running(self.map, mean))(mean)

    def sleep_loss(self, target: Tensor, given: Tensor) -> Tensor:
        """The loss of the kernel at the targets without the gauge, ``(n,)``; see :meth:`halikit.Kernel.sleep_loss`."""
        kernel = self.kernel.conditioned(self.context)
        return _sleep_loss(kernel, self._map(kernel, given, kernel.sample(given)), target, given)

    def _map(self, kernel: Kernel, given: Tensor, draw: Tensor) -> _Map:
        if not kernel.knows_mean:
            return self.map.by_draws(draw)
        scale = kernel.stddev(given) if self.map.preserves_variance else None  # type: ignore[operator]
        return self.map.by_mean(kernel.mean(given), scale)


class GaugedDensityKernel(_Gauged, DensityKernel):
    """A kernel with a density and a gauge; the arguments are those of :func:`gauged`."""

    kernel: DensityKernel

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        """The distribution under the gauge, event shape ``target.shape``.

        Raises:
            RuntimeError: In training mode, in which batch statistics couple the samples.
        """
        check_evaluates(self)
        kernel = self.kernel.conditioned(self.context)
        distribution = kernel(given)
        to_state = self._map(kernel, given, distribution)
        affine = dist.transforms.AffineTransform(to_state.shift, to_state.factor, event_dim=self.target.rank)
        return dist.TransformedDistribution(distribution, [affine])

    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A draw under the gauge, ``(n, *target.shape)``."""
        kernel = self.kernel.conditioned(self.context)
        distribution = kernel(given)
        draw = kernel.sample_from(distribution, given, generator)
        return self._map(kernel, given, distribution, draw)(draw)

    def mean(self, given: Tensor) -> Tensor:
        """The mean, or what stands for it, under the gauge, ``(n, *target.shape)``."""
        kernel = self.kernel.conditioned(self.context)
        if not kernel.knows_mean:
            mean = kernel.mean(given)
            return _by_running(self.map, mean)(mean)
        distribution = kernel(given)
        return self._map(kernel, given, distribution)(_mean(kernel, given, distribution))

    def sleep_loss(self, target: Tensor, given: Tensor) -> Tensor:
        """The loss of the kernel at the targets without the gauge, ``(n,)``; see :meth:`halikit.Kernel.sleep_loss`."""
        kernel = self.kernel.conditioned(self.context)
        return _sleep_loss(kernel, self._map(kernel, given, kernel(given)), target, given)

    def _map(self, kernel: DensityKernel, given: Tensor, distribution: Any, draw: Tensor | None = None) -> _Map:
        """The map of a batch, from one call of its networks."""
        if not kernel.knows_mean:
            return self.map.by_draws(kernel.sample_from(distribution, given, None) if draw is None else draw)
        scale = distribution.stddev if self.map.preserves_variance else None
        return self.map.by_mean(_mean(kernel, given, distribution), scale)


def _mean(kernel: DensityKernel, given: Tensor, distribution: Any) -> Tensor:
    """The mean that the distribution knows, or the one that the kernel computes."""
    try:
        return distribution.mean
    except NotImplementedError:
        return kernel.mean(given)


def _by_running(map_: _GaugeMap, states: Tensor) -> _Map:
    """The map by running statistics, also in training: what stands for a mean says nothing of the batch's draws."""
    with evaluating(map_):
        return map_.by_draws(states)


def _sleep_loss(kernel: Kernel, to_state: _Map, target: Tensor, given: Tensor) -> Tensor:
    """``−log q(w) = −log q₀((w − shift) / factor) + log factor``, per element, for ``q₀`` without the gauge."""
    loss = kernel.sleep_loss((target - to_state.shift) / to_state.factor, given)
    return loss + to_state.factor.log().mean()


def _check_variance_preserving(kernel: Kernel) -> None:
    """Refuse a kernel whose variance cannot be preserved.

    Raises:
        ValueError: If its mean or its standard deviation is not known, or a standard deviation is 1 or more.
    """
    if not kernel.knows_mean:
        raise ValueError(
            f"{kernel} does not know its mean, so its variance cannot be preserved: define mean(given), or use the "
            "standardised gauge, which then normalises draws"
        )
    if not isinstance(kernel, DensityKernel) and not hasattr(kernel, "stddev"):
        raise ValueError(
            f"{kernel} has neither a density nor a method stddev(given), which the variance-preserving gauge needs: "
            "define it, or use the standardised gauge"
        )
    if kernel.takes_context and kernel.context is None:
        return
    like = next(kernel.parameters(), torch.empty(0))
    with evaluating(kernel), seeded(0, like.device), torch.no_grad():
        given = torch.randn(64, *kernel.source.shape, dtype=like.dtype, device=like.device)
        stddev = kernel(given).stddev if isinstance(kernel, DensityKernel) else kernel.stddev(given)  # type: ignore[operator]
    if not (stddev < 1).all():
        raise ValueError(
            f"the variance-preserving gauge needs a standard deviation below 1, and {kernel} has "
            f"{float(stddev.max()):.3g} on standard normal states: bound it, or use the standardised gauge"
        )


def _is_discrete(kernel: Kernel) -> bool:
    if not isinstance(kernel, DensityKernel) or (kernel.takes_context and kernel.context is None):
        return False
    like = next(kernel.parameters(), torch.empty(0))
    with evaluating(kernel), torch.no_grad():
        return bool(kernel(like.new_zeros(2, *kernel.source.shape)).support.is_discrete)
