"""Linear-Gaussian kernels: everything in closed form, the oracle that the mathematics is tested against."""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from halikit.kernels.composition import composed_adjoint
from halikit.kernels.kernel import DensityKernel, Kernel, batch_shape
from halikit.spaces import Space

__all__ = ["Gaussian", "LinearGaussianKernel"]


class Gaussian(NamedTuple):
    """A Gaussian measure on flattened states.

    Attributes:
        mean: ``(d,)``.
        covariance: ``(d, d)``, positive definite.
    """

    mean: Tensor
    covariance: Tensor

    @property
    def entropy(self) -> Tensor:
        """Differential entropy in nats, exact, ``()``."""
        d = self.mean.shape[0]
        return 0.5 * (d * (1 + math.log(2 * math.pi)) + self.covariance.logdet())

    def kl(self, other: Gaussian) -> Tensor:
        """``KL(self ‖ other)`` in nats, exact, ``()``."""
        return torch.distributions.kl_divergence(
            torch.distributions.MultivariateNormal(self.mean, self.covariance),
            torch.distributions.MultivariateNormal(other.mean, other.covariance),
        )


class LinearGaussianKernel(DensityKernel):
    """``T_{w|v} = N(W v + b, S)`` on flattened states, with a full covariance.

    ``@`` of two of them is one of them again, with ``W = W₂ W₁``, ``b = W₂ b₁ + b₂``, ``S = W₂ S₁ W₂ᵀ + S₂``, and
    stays tied to their parameters.

    Args:
        source: Space conditioned on, ``s`` elements.
        target: Space measured, ``t`` elements.
        weight: ``W``, ``(t, s)``.
        bias: ``b``, ``(t,)``; zero by default.
        covariance: ``S``, ``(t, t)``, positive definite; the identity by default.

    Raises:
        ValueError: If a shape does not fit the spaces or the covariance is not positive definite.
    """

    def __init__(
        self,
        source: Space,
        target: Space,
        weight: Tensor,
        bias: Tensor | None = None,
        covariance: Tensor | None = None,
    ) -> None:
        super().__init__(source, target)
        t, s = target.size, source.size
        bias = weight.new_zeros(t) if bias is None else bias
        covariance = torch.eye(t, dtype=weight.dtype, device=weight.device) if covariance is None else covariance
        for name, tensor, shape in [
            ("weight", weight, (t, s)),
            ("bias", bias, (t,)),
            ("covariance", covariance, (t, t)),
        ]:
            if tensor.shape != shape:
                raise ValueError(f"{self}: {name} must be {shape} for {source} → {target}, got {tuple(tensor.shape)}")
        tril, failed = torch.linalg.cholesky_ex(covariance)
        if failed:
            raise ValueError(f"{self}: the covariance is not positive definite")
        self._weight = nn.Parameter(weight.detach().clone())
        self._bias = nn.Parameter(bias.detach().clone())
        self._scale_tril = nn.Parameter(tril.detach())

    @property
    def weight(self) -> Tensor:
        """``W``, ``(t, s)``."""
        return self._weight

    @property
    def bias(self) -> Tensor:
        """``b``, ``(t,)``."""
        return self._bias

    @property
    def covariance(self) -> Tensor:
        """``S``, ``(t, t)``."""
        tril = self._scale_tril.tril()
        return tril @ tril.T

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        """The Gaussian over ``target``, event shape ``target.shape``."""
        batch = batch_shape(self, given)
        mean = given.reshape(*batch, -1) @ self.weight.T + self.bias
        flat = dist.MultivariateNormal(mean, self.covariance)
        if self.target.rank == 1:
            return flat
        return dist.TransformedDistribution(
            flat, [dist.transforms.ReshapeTransform(torch.Size([self.target.size]), torch.Size(self.target.shape))]
        )

    def mean(self, given: Tensor) -> Tensor:
        """``W v + b``, ``(..., *target.shape)``."""
        batch = batch_shape(self, given)
        return (given.reshape(*batch, -1) @ self.weight.T + self.bias).reshape((*batch, *self.target.shape))

    def marginal(self, given: Gaussian) -> Gaussian:
        """The measure on ``target`` when the source is distributed as ``given``, exact."""
        w = self.weight
        return Gaussian(w @ given.mean + self.bias, w @ given.covariance @ w.T + self.covariance)

    def joint(self, given: Gaussian) -> Gaussian:
        """The measure on (source, target), in this order, when the source is distributed as ``given``; exact."""
        marginal = self.marginal(given)
        cross = given.covariance @ self.weight.T
        return Gaussian(
            torch.cat([given.mean, marginal.mean]),
            torch.cat([torch.cat([given.covariance, cross], 1), torch.cat([cross.T, marginal.covariance], 1)]),
        )

    def posterior(self, given: Gaussian) -> LinearGaussianKernel:
        """Bayes' rule: the exact kernel ``target → source`` when the source is distributed as ``given``."""
        marginal = self.marginal(given)
        gain = torch.linalg.solve(marginal.covariance, self.weight @ given.covariance).T
        covariance = given.covariance - gain @ self.weight @ given.covariance
        return LinearGaussianKernel(
            self.target,
            self.source,
            gain.detach(),
            (given.mean - gain @ marginal.mean).detach(),
            (0.5 * (covariance + covariance.T)).detach(),
        )

    def conditional_entropy(self, given: Gaussian | None = None) -> Tensor:
        """``H(target | source)`` in nats, exact, ``()``; or ``H(source | target)``, the source distributed as given."""
        if given is None:
            return Gaussian(self.bias, self.covariance).entropy
        return self.joint(given).entropy - self.marginal(given).entropy

    def __matmul__(self, inner: Kernel) -> Kernel:
        if isinstance(inner, LinearGaussianKernel) and inner.target == self.source:
            return _LinearGaussianComposite(self, inner)
        return super().__matmul__(inner)


class _LinearGaussianComposite(LinearGaussianKernel):
    """The closed form of ``outer ∘ inner``, computed from the factors' parameters as they are now."""

    def __init__(self, outer: LinearGaussianKernel, inner: LinearGaussianKernel) -> None:
        super(LinearGaussianKernel, self).__init__(inner.source, outer.target)
        self._factors = nn.ModuleList([*inner.factors, *outer.factors])

    @property
    def factors(self) -> tuple[Kernel, ...]:
        return tuple(self._factors)  # type: ignore[arg-type]

    def _leaves(self) -> tuple[LinearGaussianKernel, ...]:
        return tuple(self._factors)  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:
        weight = self._leaves()[0].weight
        for factor in self._leaves()[1:]:
            weight = factor.weight @ weight
        return weight

    @property
    def bias(self) -> Tensor:
        bias = self._leaves()[0].bias
        for factor in self._leaves()[1:]:
            bias = factor.weight @ bias + factor.bias
        return bias

    @property
    def covariance(self) -> Tensor:
        covariance = self._leaves()[0].covariance
        for factor in self._leaves()[1:]:
            covariance = factor.weight @ covariance @ factor.weight.T + factor.covariance
        return covariance

    @property
    def adjoint(self) -> Kernel:
        return composed_adjoint(self)

    def __str__(self) -> str:
        return " ∘ ".join(str(factor) for factor in reversed(self.factors))
