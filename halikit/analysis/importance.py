"""Importance sampling of the states between data and a latent, with as many draws as a number needs.

Eq. 5 above level 1 and ``log p(x)`` are logarithms of expectations over *paths*: draws of all the states in between.
A path comes from the encoder, given the datum, or from the decoder, given the latent. By default half of the paths
come from each, and all are weighted by the density of the mixture (see :meth:`halikit.kernels.Composite.log_weights`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from halikit.analysis.batched import batches, sizes
from halikit.errors import InputError
from halikit.kernels import Composite, DensityKernel, Kernel, NoDensityError
from halikit.kernels.paths import effective_sample_size

__all__ = [
    "CHUNK",
    "Bounds",
    "Draws",
    "Paths",
    "PathsName",
    "Proposal",
    "behind",
    "bound_log_density",
    "check_request",
    "choose_paths",
    "rows_of",
]

PathsName = Literal["mixture", "encoder", "decoder"]
# Who draws the paths: both in halves, the encoder, the decoder, or a kernel from the data.
Proposal = PathsName | Kernel

# States that pass through the networks at a time; each draw counts.
CHUNK = 16_384
# Draws before the first doubling.
_FEWEST = 64


@dataclass(frozen=True)
class Draws:
    """The draws behind a number that importance sampling gives.

    Attributes:
        number: Paths for each value.
        effective_sample_size: Mean over the values of ``(Σ w)² / Σ w²``, between 1 and ``number``. Near 1 a single path
            dominates a value, and the bound is loose.
        proposal: Who drew the paths: ``mixture``, ``encoder``, ``decoder``, or the name of a kernel.
        change: How far the mean moved at the last doubling, in nats; ``None`` if the number of draws was fixed.
        settled: Whether that is less than the tolerance; ``None`` if the number of draws was fixed.
    """

    number: int
    effective_sample_size: float
    proposal: str
    change: float | None = None
    settled: bool | None = None

    def __str__(self) -> str:
        text = f"{self.number:,} draws by the {self.proposal}, effective sample size {self.effective_sample_size:.1f}"
        if self.settled is False:
            return f"{text}; not settled: the last doubling moved the mean by {self.change:.2g} nats"
        return text


def check_request(x: Tensor, **counts: int | None) -> None:
    """Check that there are data, and that numbers of draws are positive where they are given.

    Args:
        x: ``(n, *shape of x)``.
        counts: Numbers of draws, by the name of the argument.

    Raises:
        InputError: If there are no data, or a number is below 1.
    """
    if not len(x):
        raise InputError("there are no data to measure on: x has no rows")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"{name} is at least 1, got {count}")


def behind(draws: Draws | None) -> dict[str, Any]:
    """Who drew, and whether the mean settled, as JSON takes it; all are ``None`` for a number without draws."""
    return {name: getattr(draws, name, None) for name in ("proposal", "change", "settled")}


class Paths(NamedTuple):
    """How paths are drawn.

    Attributes:
        proposal: A kernel from the data that draws paths; ``None`` if the decoder draws them alone.
        mixed: Whether the decoder draws half of them beside the proposal.
        name: ``mixture``, ``encoder``, ``decoder``, or the name of the kernel.
    """

    proposal: Kernel | None
    mixed: bool
    name: str


class Bounds(NamedTuple):
    """Stochastic lower bounds on log-densities.

    Attributes:
        values: ``(k, n)``, in nats. Their expectations are at most the true log-densities.
        effective_sample_sizes: ``(k, n)``, between 1 and the number of draws.
        draws: The draws behind each of them.
    """

    values: Tensor
    effective_sample_sizes: Tensor
    draws: Draws


def choose_paths(decoder: Composite, encoder: Kernel, proposal: Proposal = "mixture") -> Paths:
    """Who draws the paths, as far as the kernels have the densities that are needed.

    The mixture falls back on the decoder alone, where a kernel of the decoder above the data or one of the encoder has
    no density, or the encoder goes through other spaces.

    Args:
        decoder: The composition from the latent down to the data.
        encoder: The kernel from the data up through the states in between.
        proposal: Who is to draw the paths.

    Raises:
        NoDensityError: If the encoder alone is to draw the paths, and a kernel has no density.
        InputError: If the proposal is none of the names.
    """
    if isinstance(proposal, Kernel):
        return Paths(proposal, False, str(proposal))
    if proposal not in ("mixture", "encoder", "decoder"):
        raise InputError(f"a proposal is mixture, encoder, decoder or a kernel, got {proposal!r}")
    up, between = encoder.factors[: len(decoder) - 1], decoder.factors[:-1]
    without = [kernel for kernel in (*up, *between) if not isinstance(kernel, DensityKernel)]
    if proposal == "encoder":
        if without:
            raise NoDensityError(f"{without[0]} has no density, so the encoder cannot draw the paths: leave it out")
        return Paths(encoder, False, "encoder")
    mirrors = [kernel.target for kernel in up] == [kernel.target for kernel in reversed(between)]
    if proposal == "decoder" or without or not mirrors:
        return Paths(None, False, "decoder")
    return Paths(encoder, True, "mixture")


@torch.no_grad()
def bound_log_density(
    decoder: Composite,
    x: Tensor,
    given: Tensor,
    paths: Paths,
    *,
    num_draws: int | None = None,
    most: int = 4096,
    tolerance: float = 0.5,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Bounds:
    """Lower bounds on ``log p(x|given)``, with draws doubled until their mean settles.

    The draws start at 64. Each doubling adds new ones to those before, until it moves the mean over all values by less
    than ``tolerance``. Memory is bounded: 16,384 paths pass through the networks at a time.

    Args:
        decoder: The composition from the latent down to the data.
        x: ``(n, *shape of x)``.
        given: ``(k, n, *shape of the latent)``: several latents for each datum.
        paths: How paths are drawn.
        num_draws: Number of paths for each value; by default it is found by doubling.
        most: Largest number of paths that doubling comes to.
        tolerance: Change of the mean in nats below which doubling ends.
        context: The context of the data, ``(n, …)`` or ``(1, …)``, if kernels take one.
        generator: Random generator; torch's global one by default.
        on_progress: Called with (paths drawn, paths in total at most).
    """
    sums = _Sums(decoder, x, given, paths, context, generator)
    total = given.shape[0] * len(x) * (num_draws or most)
    advance = on_progress or (lambda done, total: None)
    wanted = num_draws or min(_FEWEST, most)
    mean, change = math.nan, None
    while True:
        for done in sums.add(wanted - sums.count):
            advance(done, total)
        before, mean = mean, float(sums.values.mean())
        if num_draws is None and sums.count > _FEWEST:
            change = mean - before
        if sums.count >= (num_draws or most) or (change is not None and abs(change) < tolerance):
            break
        wanted = min(2 * wanted, most)
    advance(total, total)
    sizes = sums.effective_sample_sizes
    settled = None if change is None else abs(change) < tolerance
    return Bounds(sums.values, sizes, Draws(sums.count, float(sizes.mean()), paths.name, change, settled))


class _Sums:
    """Sums of the weights and of their squares, in logarithms, ``(k, n)`` each."""

    def __init__(
        self,
        decoder: Composite,
        x: Tensor,
        given: Tensor,
        paths: Paths,
        context: Tensor | None,
        generator: torch.Generator | None,
    ) -> None:
        self._decoder, self._x, self._given = decoder, x, given
        self._paths, self._context, self._generator = paths, context, generator
        dtype = torch.promote_types(x.dtype, torch.float32)
        self._log_sum = torch.full(given.shape[:1] + x.shape[:1], -math.inf, dtype=dtype, device=x.device)
        self._log_squares = self._log_sum.clone()
        self._done = 0
        self.count = 0

    def add(self, count: int) -> Iterator[int]:
        """Add as many paths to every value; yields the number of paths drawn so far for all of them."""
        for draws in sizes(count, CHUNK):
            for rows, x in batches(self._x, max(1, CHUNK // draws)):
                for k, given in enumerate(self._given[:, rows]):
                    log_weights = self._decoder.log_weights(
                        x,
                        given,
                        num_samples=draws,
                        proposal=self._paths.proposal,
                        mixed=self._paths.mixed,
                        generator=self._generator,
                        context=rows_of(self._context, rows),
                    )
                    for total, added in ((self._log_sum, log_weights), (self._log_squares, 2 * log_weights)):
                        total[k, rows] = torch.logaddexp(total[k, rows], added.logsumexp(0))
                    self._done += draws * len(x)
                    yield self._done
        self.count += count

    @property
    def values(self) -> Tensor:
        """The logarithms of the mean weights."""
        return self._log_sum - math.log(self.count)

    @property
    def effective_sample_sizes(self) -> Tensor:
        """``(Σ w)² / Σ w²`` of each value, ``(k, n)``."""
        return effective_sample_size(self._log_sum, self._log_squares)


def rows_of(context: Tensor | None, rows: slice) -> Tensor | None:
    """The context of some of the data, ``(b, …)`` of ``(n, …)``; one of a single row is for all of them."""
    return context if context is None or len(context) == 1 else context[rows]
