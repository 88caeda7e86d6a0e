"""Importance sampling of the states between the ends of a composition (Eq. 1), which has no density in closed form.

A path is one draw of all of these states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from halikit.utils.modes import validating
from halikit.utils.tensors import at_least_single

__all__ = ["LogProbEstimate", "NoDensityError", "effective_sample_size", "log_density", "repeated", "weigh"]


class NoDensityError(TypeError):
    """The kernel has no density in closed form."""


class Kernel(Protocol):
    """What is needed of a kernel on a path; see :class:`halikit.Kernel`."""

    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A draw for each of the states that are given."""

    def log_prob(self, value: Tensor, given: Tensor) -> Tensor:
        """The exact log-density, in nats."""

    def __call__(self, given: Tensor) -> Any:
        """The distribution, if the kernel has a density."""


class LogProbEstimate(NamedTuple):
    """A stochastic lower bound on a log-density: the logarithm of a mean of importance weights.

    Attributes:
        value: The bound, ``(...)``, in nats. Its expectation is at most the true log-density, and converges to it as
            ``num_samples`` grows.
        effective_sample_size: ``(...)``, between 1 and ``num_samples``. Near 1 a single sample dominates the mean, and
            the bound is loose.
        num_samples: Number of samples of the intermediate states for each value.
    """

    value: Tensor
    effective_sample_size: Tensor
    num_samples: int


def effective_sample_size(log_sum: Tensor, log_sum_of_squares: Tensor) -> Tensor:
    """``(Σ w)² / Σ w²`` of importance weights, from the logarithms of both sums; 1 if all weights are zero."""
    return (2 * log_sum - log_sum_of_squares).exp().nan_to_num(nan=1.0)


def weigh(
    factors: Sequence[Kernel],
    back: Sequence[Kernel],
    value: Tensor,
    given: Tensor,
    proposed: int,
    own: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Log-weights of ``proposed`` paths from ``value`` and ``own`` paths from ``given``.

    Args:
        factors: The kernels of the composition, in order of application.
        back: Kernels that draw the states between from ``value``, in the opposite order.
        value: ``(..., *shape of the last factor's target)``.
        given: ``(..., *shape of the first factor's source)``.
        proposed: Number of paths that ``back`` draws.
        own: Number of paths that the factors draw.
        generator: Random generator; torch's global one by default.

    Returns:
        ``(proposed + own, ...)``, in nats.

    Raises:
        NoDensityError: If a kernel has no density where one is needed.
    """
    *forth, last = factors
    # Paths as lists of states, in the order of the way back.
    paths = [_drawn_path(back, repeated(value, proposed), generator)] if proposed else []
    if own:
        paths.append(_drawn_path(forth, repeated(given, own), generator)[::-1])
    path = [torch.cat(states) for states in zip(*paths, strict=True)]
    values, givens = repeated(value, proposed + own), repeated(given, proposed + own)
    log_back = _log_density_of_path(back, [values, *path])
    log_forth = _log_density_of_path(forth, [givens, *reversed(path)])
    log_mixture = torch.logaddexp(log_back + _log_share(proposed, own), log_forth + _log_share(own, proposed))
    return log_density(last, values, path[0]) + log_forth - log_mixture


def repeated(states: Tensor, count: int) -> Tensor:
    """The same states for ``count`` draws, ``(count, *shape of the states)``, without a copy."""
    return states.expand(count, *states.shape)


def _log_share(one: int, other: int) -> float:
    return math.log(one / (one + other)) if one else -math.inf


def _drawn_path(kernels: Sequence[Kernel], given: Tensor, generator: torch.Generator | None) -> list[Tensor]:
    """The states that the kernels draw, one from another."""
    path = []
    for kernel in kernels:
        given = kernel.sample(given, generator=generator)
        path.append(given)
    return path


def _log_density_of_path(kernels: Sequence[Kernel], states: Sequence[Tensor]) -> Tensor:
    """``Σ log T(states[i + 1] | states[i])`` over the kernels, ``(...)``."""
    steps = zip(kernels, pairwise(states), strict=True)
    return torch.stack([log_density(kernel, state, given) for kernel, (given, state) in steps]).sum(0)


def log_density(kernel: Kernel, value: Tensor, given: Tensor) -> Tensor:
    """The log-density of a kernel in at least single precision, ``(...)``, in nats.

    It is minus infinity where a value lies outside a continuous support, as under a uniform prior.

    Raises:
        NoDensityError: If the kernel has none, or the value is not one of its discrete states.
    """
    try:
        with validating():
            return at_least_single(kernel.log_prob(value, given))
    except ValueError as error:
        if "within the support" not in str(error):
            raise
        support = kernel(given).support
        if not support.is_discrete and not value.isnan().any():
            inside = support.check(value)
            rows = inside.reshape(inside.shape + (1,) * (value.dim() - inside.dim()))
            density = kernel.log_prob(torch.where(rows, value, kernel.sample(given)), given)
            return at_least_single(density).where(inside, -math.inf)
        raise NoDensityError(
            f"{kernel} has no density at states outside its support, such as relaxed classes under a kernel of hard "
            "ones: let the kernels of one direction draw alone, or give both directions the same kind of states"
        ) from error
