"""Composition of kernels (Eq. 1) and the adjoint of a composition (Eq. 2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce
from itertools import pairwise
from operator import matmul
from typing import NamedTuple

import torch
from torch import Tensor, nn

from halikit.kernels.kernel import DensityKernel, Kernel, NoDensityError

__all__ = ["Composite", "LogProbEstimate", "compose", "composed_adjoint"]


class LogProbEstimate(NamedTuple):
    """A stochastic lower bound on a log-density: the log of a mean of densities.

    Attributes:
        value: ``(...)``, nats. Its expectation is at most the true log-density, and tends to it as
            ``num_samples`` grows.
        effective_sample_size: ``(...)``, between 1 and ``num_samples``: how many of the draws carry the
            mean. Near 1 the bound is loose.
        num_samples: Draws of the intermediate states per value.
    """

    value: Tensor
    effective_sample_size: Tensor
    num_samples: int


class Composite(Kernel):
    """``T_{w|v} ∘ T_{v|u}``: kernels applied one after another, the states between marginalised out (Eq. 1).

    Its density is an expectation over those states, so it has no exact one: :meth:`estimate_log_prob` bounds
    it from below. Nested composites flatten; a composite iterates over, and indexes as, its factors.

    Args:
        factors: Two kernels or more, in order of application.

    Raises:
        ValueError: If a kernel's target is not the next one's source.
    """

    def __init__(self, *factors: Kernel) -> None:
        flat = [leaf for factor in factors for leaf in factor.factors]
        if len(flat) < 2:
            raise ValueError("a composite takes two kernels or more")
        for inner, outer in pairwise(flat):
            _check_fit(outer, inner)
        super().__init__(flat[0].source, flat[-1].target)
        self._factors = nn.ModuleList(flat)

    @property
    def factors(self) -> tuple[Kernel, ...]:
        """The kernels composed, in order of application."""
        return tuple(self)

    def __iter__(self) -> Iterator[Kernel]:
        return iter(self._factors)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._factors)

    def __getitem__(self, index: int | slice) -> Kernel:
        """The factor at ``index``, or the composition of a slice of them."""
        if isinstance(index, slice):
            return compose(*reversed(self.factors[index]))
        return self.factors[index]

    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw through every factor in turn, ``(..., *target.shape)``."""
        state = given
        for factor in self:
            state = factor.sample(state, generator=generator)
        return state

    def mean(self, given: Tensor) -> Tensor:
        """Follow the factors' means, ``(..., *target.shape)``; the mean itself if the outer factors are affine."""
        state = given
        for factor in self:
            state = factor.mean(state)
        return state

    @property
    def knows_mean(self) -> bool:
        """Whether every factor knows its own."""
        return all(factor.knows_mean for factor in self)

    def estimate_log_prob(
        self,
        value: Tensor,
        given: Tensor,
        *,
        num_samples: int = 64,
        proposal: Kernel | None = None,
        generator: torch.Generator | None = None,
    ) -> LogProbEstimate:
        r"""Bound :math:`\log T_{w|u}(w)` from below by importance sampling of the states between.

        Without a proposal the states are drawn by the inner factors, given ``given``, and the outermost density
        is averaged. A proposal draws them backwards from ``value`` instead; the adjoint is the natural one
        (draw ``z1 ~ q(z1|x)`` to estimate ``p(x|z2)``), and tightens the bound by much.

        Args:
            value: ``(..., *target.shape)``.
            given: ``(..., *source.shape)``, the same batch dimensions.
            num_samples: Draws per value, at least 1.
            proposal: A kernel from ``target`` whose factors lead back through the states between; a last
                factor that leads to ``source`` is not used.
            generator: Source of randomness.

        Returns:
            The bound, its effective sample size and the number of samples.

        Raises:
            NoDensityError: If a density that is needed does not exist.
            ValueError: If ``num_samples`` is not positive or the proposal leads elsewhere.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        values = value.expand(num_samples, *value.shape)
        givens = given.expand(num_samples, *given.shape)
        if proposal is None:
            between = self[:-1].sample(givens, generator=generator)
            log_weights = _density(self[-1]).log_prob(values, between)
        else:
            log_weights = self._proposed_log_weights(values, givens, proposal, generator)
        log_sum = log_weights.logsumexp(0)
        # Where no draw has any weight, none is more effective than another.
        ess = (2 * log_sum - (2 * log_weights).logsumexp(0)).exp().nan_to_num(nan=1.0)
        return LogProbEstimate(log_sum - math.log(num_samples), ess, num_samples)

    def _proposed_log_weights(
        self, values: Tensor, givens: Tensor, proposal: Kernel, generator: torch.Generator | None
    ) -> Tensor:
        back = proposal.factors[: len(self) - 1]
        expected = [factor.source for factor in reversed(self.factors[1:])]
        if proposal.source != self.target or [kernel.target for kernel in back] != expected:
            raise ValueError(
                f"the proposal {proposal} does not lead from {self.target} back through {', '.join(map(str, expected))}"
            )
        states = [values]
        log_weights = torch.zeros((), device=values.device)
        for kernel in back:
            states.append(kernel.sample(states[-1], generator=generator))
            log_weights = log_weights - _density(kernel).log_prob(states[-1], states[-2])
        states.append(givens)
        for factor, target, source in zip(reversed(self.factors), states, states[1:], strict=False):
            log_weights = log_weights + _density(factor).log_prob(target, source)
        return log_weights

    @property
    def adjoint(self) -> Kernel:
        """The adjoints of the factors, composed in the opposite order (Eq. 2)."""
        return composed_adjoint(self)

    def __str__(self) -> str:
        return " ∘ ".join(str(factor) for factor in reversed(self.factors))


def compose(*kernels: Kernel) -> Kernel:
    """``kernels[0] ∘ kernels[1] ∘ …``, the outermost first, as one writes it; one kernel alone is itself.

    Raises:
        ValueError: If no kernel is given, or two neighbours' spaces do not fit.
    """
    if not kernels:
        raise ValueError("nothing to compose")
    return reduce(matmul, kernels)


def composed_adjoint(kernel: Kernel) -> Kernel:
    """The adjoint of a composition: as linked, or else composed of its factors' adjoints in the opposite order."""
    if kernel._adjoint:
        return kernel._adjoint[0]
    if not kernel._mirror:
        adjoint = compose(*(factor.adjoint for factor in kernel.factors))
        adjoint._mirror, kernel._mirror = (kernel,), (adjoint,)
    return kernel._mirror[0]


def _check_fit(outer: Kernel, inner: Kernel) -> None:
    if inner.target != outer.source:
        raise ValueError(
            f"cannot compose {outer} ∘ {inner}: {inner} leads to {inner.target}, but {outer} starts from {outer.source}"
        )


def _density(kernel: Kernel) -> DensityKernel:
    if not isinstance(kernel, DensityKernel):
        raise NoDensityError(
            f"{kernel} is a {type(kernel).__name__} without a density, so no log-density can be estimated"
        )
    return kernel
