"""Agreement of density and draws, by means that are 1 where both agree."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from halikit.kernels import Kernel
from halikit.testing.case import DRAWS, ERRORS, Case

__all__ = ["densities"]

# Deviations that no statistical check reports, however small its standard error.
_TOLERANCE = 0.02


@torch.no_grad()
def densities(case: Case) -> Iterator[str]:
    """Densities that agree with draws."""
    if not case.has_density:
        return
    kernel, given = case.kernel, case.same(DRAWS)
    others, draws = kernel.sample(given), kernel.sample(given)
    log_density = kernel.log_prob(draws, given).double()
    if log_density.shape != (DRAWS,):
        yield f"log_prob() has the shape {tuple(log_density.shape)} for {DRAWS} states: one number for each"
        return
    if not log_density.isfinite().all():
        share = 1 - float(log_density.isfinite().double().mean())
        yield f"{share:.1%} of the draws have no finite log-density: every draw has one"
        return
    flat, earlier = draws.reshape(DRAWS, -1).double(), others.reshape(DRAWS, -1).double()
    states, counts = flat.unique(dim=0, return_counts=True)
    if len(states) < DRAWS / 10:
        faults = list(_frequencies(case, states.reshape(-1, *kernel.target.shape).to(draws), counts))
    elif max(_ties(column) for column in flat.T) < 0.01:
        faults = list(_histogram(kernel, given, earlier, flat, log_density))
    else:
        faults = []  # Atoms: neither a histogram nor counts fit.
    yield from faults or _neighbour(case, others, draws, log_density)


def _frequencies(case: Case, states: Tensor, counts: Tensor) -> Iterator[str]:
    """Discrete states: their probabilities against how often they are drawn."""
    probabilities = case.kernel.log_prob(states, case.same(len(states))).double().exp()
    total = float(probabilities.sum())
    if total > 1.001:
        yield f"the probabilities of the states that it draws sum to {total:.4g}, more than 1"
        return
    often = probabilities * DRAWS >= 5
    observed = torch.cat([counts[often], counts[~often].sum()[None]]).double()
    expected = torch.cat([probabilities[often], (1 - probabilities[often].sum()).clamp(min=1e-9)[None]]) * DRAWS
    statistic = ((observed - expected).square() / expected.clamp(min=1)).sum()
    freedom = torch.tensor(max(1.0, len(observed) - 1.0)).double()
    if torch.special.gammaincc(freedom / 2, statistic / 2) < 1e-5:
        worst = int(((observed - expected).abs() / expected.clamp(min=1).sqrt()).argmax())
        yield (
            f"its density does not fit its draws: a state of probability {float(expected[worst]) / DRAWS:.3g} makes "
            f"{float(observed[worst]) / DRAWS:.3g} of {DRAWS} draws"
        )


def _ties(column: Tensor) -> float:
    """The share of values that occur more than once."""
    return 1 - len(column.unique()) / len(column)


def _histogram(kernel: Kernel, given: Tensor, earlier: Tensor, draws: Tensor, log_density: Tensor) -> Iterator[str]:
    """The mean of ``r(w)/q(w)`` over draws, where ``r`` has the histograms of earlier draws as its marginals."""
    if draws.shape[1] > 1 and bool((draws > 0).all()) and bool(((draws.sum(1) - 1).abs() < 1e-3).all()):
        # A simplex, where a product of histograms would leave the support: in log-ratios, it does not.
        log_density = log_density + draws.log().sum(1)
        earlier, draws, support = _log_ratios(earlier), _log_ratios(draws), 1.0
    else:
        support = None
    levels = torch.linspace(0.005, 0.995, 31, dtype=torch.float64)
    edges = earlier.quantile(levels, dim=0).T.contiguous()
    bins = torch.searchsorted(edges, draws.T.contiguous())
    inside = ((bins > 0) & (bins < len(levels))).all(0)
    widths = edges.diff(dim=1).clamp(min=1e-300)
    log_r = -(widths * widths.shape[1]).log().gather(1, (bins - 1).clamp(0, widths.shape[1] - 1)).sum(0)
    if support is None:
        support = _share_inside(kernel, given, edges)
    fault = _not_one(torch.where(inside, log_r, -math.inf) - log_density, support)
    if fault:
        yield (
            f"its density does not fit its draws: the mean of r(w)/q(w) over draws is {fault}, and {support:.3g} is "
            "right (q is the density, r a histogram of other draws). Check its normalisation, and that log_prob() and "
            "sample() use the same distribution"
        )


def _log_ratios(simplex: Tensor) -> Tensor:
    """``log w_k − log w_K``, ``(n, K − 1)``."""
    return simplex[:, :-1].log() - simplex[:, -1:].log()


def _share_inside(kernel: Kernel, given: Tensor, edges: Tensor) -> float:
    """The probability under histograms with these edges, ``(elements, bins + 1)``, to be where the density is positive.

    It is below 1 where the support is no box. It is 1 if the density is not defined outside the support.
    """
    elements, n = len(edges), len(given)
    bins = torch.randint(edges.shape[1] - 1, (elements, n))
    low, high = edges.gather(1, bins), edges.gather(1, bins + 1)
    states = (low + (high - low) * torch.rand_like(low)).T.reshape(n, *kernel.target.shape)
    try:
        found = kernel.log_prob(states.to(kernel.dtype_for(given)), given)
    except ValueError:
        return 1.0
    return float((found > -math.inf).double().mean())


def _neighbour(case: Case, others: Tensor, draws: Tensor, log_density: Tensor) -> Iterator[str]:
    """The mean of ``q(w|v')/q(w|v)`` over draws given ``v``, at a ``v'`` whose distribution differs moderately."""
    kernel, given = case.kernel, case.same(DRAWS)

    def log_ratio(near: Tensor, states: Tensor, log_density: Tensor) -> Tensor:
        return kernel.log_prob(states, near.expand_as(given)).double() - log_density

    if given.is_floating_point() and case.kernel.source.support in (None, "real"):
        step, direction = 0.1, case.given[1] - case.given[0]
        before = kernel.log_prob(others, given).double()
        for _ in range(12):
            spread = float(log_ratio(case.given[0] + step * direction, others, before).std())
            if 0.2 < spread < 0.6:
                break
            step = step * 2 if spread <= 0.2 else step / 2
        near = case.given[0] + step * direction
    else:
        near = case.given[1]
    fault = _not_one(log_ratio(near, draws, log_density))
    if fault:
        yield (
            f"its density does not fit its draws: the mean of q(w|v')/q(w|v) over draws given v is {fault}, and 1 is "
            "right. Check that log_prob() and sample() depend on what is given in the same way"
        )


def _not_one(log_ratios: Tensor, right: float = 1.0) -> str | None:
    """The mean of ratios in words, if it is certainly not what is right; ``None`` if it may be."""
    ratios = log_ratios.clamp(max=300).exp()
    mean, error = float(ratios.mean()), float(ratios.std()) / math.sqrt(len(ratios))
    if mean > 1000:  # By Markov's inequality it is that large in one case of 1,000.
        return f"{mean:.3g}"
    effective = float(ratios.sum().square() / ratios.square().sum().clamp(min=1e-300))
    # A few large ratios dominate the mean: nothing can be said.
    if effective < len(ratios) / 50 or abs(mean - right) <= max(ERRORS * error, _TOLERANCE):
        return None
    return f"{mean:.3g} (± {error:.2g})"
