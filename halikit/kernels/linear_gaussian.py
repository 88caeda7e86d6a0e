"""Linear-Gaussian kernels. All their quantities have closed forms, which tests use as exact values."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import reduce
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from halikit.kernels.density import DensityKernel
from halikit.kernels.kernel import Kernel
from halikit.spaces import Space

__all__ = ["Gaussian", "LinearGaussian", "LinearGaussianComposite", "LinearGaussianKernel"]


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


class LinearGaussian(DensityKernel):
    """Base class of kernels ``N(W v + b, S)`` on flattened states, with a full covariance ``S``."""

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """``W``, ``(t, s)``."""

    @property
    @abstractmethod
    def bias(self) -> Tensor:
        """``b``, ``(t,)``."""

    @property
    @abstractmethod
    def covariance(self) -> Tensor:
        """``S``, ``(t, t)``."""

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        """The Gaussian over ``target``, event shape ``target.shape``."""
        flat = dist.MultivariateNormal(given.reshape(len(given), -1) @ self.weight.T + self.bias, self.covariance)
        if self.target.rank == 1:
            return flat
        return dist.TransformedDistribution(
            flat, [dist.transforms.ReshapeTransform(torch.Size([self.target.size]), torch.Size(self.target.shape))]
        )

    def mean(self, given: Tensor) -> Tensor:
        """``W v + b``, ``(..., *target.shape)``."""
        return (given.reshape(len(given), -1) @ self.weight.T + self.bias).reshape(len(given), *self.target.shape)

    def marginal(self, given: Gaussian) -> Gaussian:
        """The marginal distribution of the target if the source has the distribution ``given``, exact."""
        w = self.weight
        return Gaussian(w @ given.mean + self.bias, w @ given.covariance @ w.T + self.covariance)

    def joint(self, given: Gaussian) -> Gaussian:
        """The joint distribution of (source, target) if the source has the distribution ``given``, exact."""
        marginal = self.marginal(given)
        cross = given.covariance @ self.weight.T
        return Gaussian(
            torch.cat([given.mean, marginal.mean]),
            torch.cat([torch.cat([given.covariance, cross], 1), torch.cat([cross.T, marginal.covariance], 1)]),
        )

    def posterior(self, given: Gaussian) -> LinearGaussianKernel:
        """The exact kernel from target to source by Bayes' rule, if the source has the distribution ``given``."""
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
        """A conditional entropy in nats, exact, ``()``.

        Args:
            given: Distribution of the source, for ``H(source | target)``; ``None`` for ``H(target | source)``.
        """
        if given is None:
            return Gaussian(self.bias, self.covariance).entropy
        return self.joint(given).entropy - self.marginal(given).entropy

    def __matmul__(self, inner: Kernel) -> Kernel:
        if isinstance(inner, LinearGaussian) and inner.target == self.source:
            return LinearGaussianComposite(inner, self)
        return super().__matmul__(inner)


class LinearGaussianKernel(LinearGaussian):
    """``T_{w|v} = N(W v + b, S)`` on flattened states, with a full covariance.

    The composition ``@`` of two such kernels is a :class:`LinearGaussianComposite`, which is linear-Gaussian too.

    Args:
        source: Space of ``v``, with ``s`` elements.
        target: Space of ``w``, with ``t`` elements.
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


class LinearGaussianComposite(LinearGaussian):
    """The closed form of a composition: ``W = W₂ W₁``, ``b = W₂ b₁ + b₂``, ``S = W₂ S₁ W₂ᵀ + S₂``.

    The values are computed from the parameters of the factors at each access, so they stay correct during training.

    Args:
        factors: Linear-Gaussian kernels, in order of application. A composite is replaced by its factors.
    """

    def __init__(self, *factors: LinearGaussian) -> None:
        super().__init__(factors[0].source, factors[-1].target)
        self._factors = nn.ModuleList(leaf for factor in factors for leaf in factor.factors)

    @property
    def factors(self) -> tuple[LinearGaussian, ...]:
        """The kernels composed, in order of application."""
        return tuple(self._factors)  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:
        """``W``, ``(t, s)``."""
        return reduce(lambda weight, factor: factor.weight @ weight, self.factors[1:], self.factors[0].weight)

    @property
    def bias(self) -> Tensor:
        """``b``, ``(t,)``."""
        return reduce(lambda bias, factor: factor.weight @ bias + factor.bias, self.factors[1:], self.factors[0].bias)

    @property
    def covariance(self) -> Tensor:
        """``S``, ``(t, t)``."""
        first, *others = self.factors
        covariance = first.covariance
        for factor in others:
            covariance = factor.weight @ covariance @ factor.weight.T + factor.covariance
        return covariance

    def __str__(self) -> str:
        return " ∘ ".join(str(factor) for factor in reversed(self.factors))
