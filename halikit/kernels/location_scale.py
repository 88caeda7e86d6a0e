"""Location-scale kernels: Laplace, Student t, logistic, or any other family of one-dimensional noise.

That such families are reparametrised is in section 2.4 of "Auto-encoding variational Bayes" (Kingma and Welling 2014).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from halikit.kernels.density import DensityKernel
from halikit.kernels.kernel import network_takes_context
from halikit.kernels.scales import SLEEP_SCALE, bounded_scale, check_max_scale
from halikit.spaces import Space
from halikit.utils.tensors import at_least_single

__all__ = ["Family", "LocationScaleKernel"]

Family = Callable[[Tensor, Tensor], dist.TorchDistribution]


class LocationScaleKernel(DensityKernel):
    r"""``T_{w|v}`` with independent elements ``w = m(v) + s(v) ε``, where ``ε`` is noise of a given family.

    The network returns the locations ``m`` and raw scales ``a``, concatenated as for a
    :class:`~halikit.GaussianKernel`: ``(n, 2C, H, W)`` for feature maps, ``(n, 2D)`` for vectors. The raw scale gives
    the standard deviation ``σ``, not the scale parameter of the family, so ``max_scale`` bounds ``σ`` for every family:
    ``σ = 0.001 + (max_scale − 0.001) · sigmoid(a)``, or ``σ = exp(3 tanh(a/3))`` without ``max_scale``.

    Args:
        source: Space of ``v``.
        target: Space of ``w``.
        network: Any module from ``(n, *source.shape)`` to locations and raw scales.
        family: ``"laplace"``, ``"logistic"``, ``"student_t"``; or a function from locations and scales to a Pyro
            distribution without event dimensions. If the noise has no finite standard deviation (Cauchy), ``σ`` is the
            scale parameter.
        degrees_of_freedom: Degrees of freedom of the Student t, above 2, so that its standard deviation is finite.
        max_scale: Upper bound of the standard deviation.

    Raises:
        ValueError: If the family is unknown, the degrees of freedom are not above 2 or the upper bound is not valid.

    Example:
        >>> v, w = Space("v", (3,)), Space("w", (4,))
        >>> kernel = LocationScaleKernel(v, w, nn.Linear(3, 8), family="student_t", max_scale=0.5)
        >>> bool((kernel.scale(torch.randn(5, 3)) <= 0.5).all())
        True
    """

    def __init__(
        self,
        source: Space,
        target: Space,
        network: nn.Module,
        *,
        family: Literal["laplace", "logistic", "student_t"] | Family = "laplace",
        degrees_of_freedom: float = 5.0,
        max_scale: float | None = None,
    ) -> None:
        super().__init__(source, target)
        if not degrees_of_freedom > 2:
            raise ValueError(
                f"{self}: degrees_of_freedom is above 2, where the standard deviation is finite; "
                f"got {degrees_of_freedom}"
            )
        known: dict[str, Family] = {
            "laplace": dist.Laplace,
            "logistic": _Logistic,
            "student_t": partial(dist.StudentT, degrees_of_freedom),
        }
        if isinstance(family, str) and family not in known:
            raise ValueError(f"{self}: family is {', '.join(map(repr, known))} or a function, got {family!r}")
        check_max_scale(self, max_scale)
        self.network, self.takes_context = network, network_takes_context(network)
        self.family: Family = known[family] if isinstance(family, str) else family
        self.max_scale = max_scale
        self._unit = _standard_deviation(self.family)
        if self._unit is None and max_scale is not None:
            raise ValueError(f"{self}: max_scale bounds a standard deviation, and the noise of this family has none")

    def moments(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """Locations and standard deviations, ``(n, *target.shape)`` each, for ``given`` ``(n, *source.shape)``."""
        location, raw = self.run_network(self.network, given, 2)
        return at_least_single(location), bounded_scale(at_least_single(raw), self.max_scale)

    def scale(self, given: Tensor) -> Tensor:
        """The conditional standard deviation, ``(n, *target.shape)``."""
        return self.moments(given)[1]

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        """The distribution over ``target``, event shape ``target.shape``."""
        return self._distribution(*self.moments(given))

    def sleep_loss(self, target: Tensor, given: Tensor) -> Tensor:
        """The negative log-density, ``(n,)``, in nats per element; standard deviations below 0.1 are replaced by 0.1.

        Args:
            target: ``(n, *target.shape)``.
            given: ``(n, *source.shape)``.
        """
        location, scale = self.moments(given)
        distribution = self._distribution(location, scale.clamp(min=SLEEP_SCALE))
        return -distribution.log_prob(at_least_single(target)) / self.target.size

    def _distribution(self, location: Tensor, scale: Tensor) -> dist.TorchDistribution:
        return self.family(location, scale / (self._unit or 1.0)).to_event(self.target.rank)


class _Logistic(dist.Logistic):
    """Pyro's logistic distribution, whose draws are finite: one in 16 million of Pyro's is minus infinity."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, ``(*sample_shape, *batch_shape)``; they pass gradients."""
        uniform = self.loc.new_empty(self._extended_shape(torch.Size(sample_shape))).uniform_()
        return self.icdf(uniform.clamp(min=torch.finfo(uniform.dtype).tiny))  # type: ignore[no-untyped-call]


def _standard_deviation(family: Family) -> float | None:
    """The standard deviation of a family at scale 1; ``None`` if it has no finite one."""
    try:
        found = float(family(torch.zeros(()), torch.ones(())).stddev)
    except NotImplementedError:
        return None
    return found if math.isfinite(found) and found > 0 else None
