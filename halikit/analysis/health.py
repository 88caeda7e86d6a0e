"""Health of a trained hierarchy: what each latent is used for, where the two joints (Eqs. 3 and 4) differ, alarms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from halikit.analysis.batched import at_random
from halikit.analysis.quantity import Quantity
from halikit.analysis.recovery import LEAST, decoder_use, recovery
from halikit.analysis.two_sample import TwoSampleTest, two_sample_test
from halikit.hierarchy import Hierarchy
from halikit.utils.random import seeded

__all__ = ["Health", "LevelHealth", "examine", "information"]

# Data among which a latent has to find its own. The bound on the information is at most the logarithm of it.
_GROUP = 128
# An entry of a latent is dead if the standard deviation of its mean over the data is smaller.
_DEAD = 0.05
# Samples of the decoder's joint on which recovery is measured.
_DRAWN = 1000

# Alarms are raised below this information in nats, below this use by the decoder (a ratio of errors), above this share
# of dead entries, above this bound on D_JS in nats, and below this ratio of distances between samples and between data.
_LEAST_INFORMATION = 0.1
_LEAST_USE = 1.05
_MOST_DEAD = 0.1
_MOST_DIVERGENCE = 0.35
_LEAST_SPREAD = 0.5


@dataclass(frozen=True)
class LevelHealth:
    """One latent and its link to the state below.

    Attributes:
        level: Level l.
        name: Name of the latent.
        information: Lower bound (InfoNCE) on the mutual information of ``x`` and the encoder's ``z_l`` in nats, at most
            log 128 = 4.85; ``None`` for fewer than 256 data.
        error: Root mean square error of reconstructions from ``z_l``, over all elements and data; an estimate.
        error_shuffled: The same with the ``z_l`` of another datum (an ablation); an estimate.
        dead: Share of the entries of ``z_l`` whose mean hardly varies over the data; an estimate.
        recovery: How much of the decoder's ``z_l`` the encoder recovers from the decoder's ``z_{l−1}``
            (:mod:`halikit.analysis.recovery`); an estimate.
        recovery_from_x: How much of it the encoder recovers from the decoder's ``x``; an estimate.
        decoder_use: Error of the decoder's mean of ``z_{l−1}`` given the ``z_l`` of another sample, over that given its
            own ``z_l``; 1 where the decoder ignores ``z_l``; an estimate.
        aggregate: Test of the encoder's ``z_l`` over the data against the decoder's ``z_l``; at the top that is the
            prior.
        pair: Test of the encoder's ``(z_{l−1}, z_l)`` against the decoder's. If the joints differ, some pair differs.
    """

    level: int
    name: str
    information: Quantity | None
    error: Quantity
    error_shuffled: Quantity
    dead: float
    recovery: float
    recovery_from_x: float
    decoder_use: float
    aggregate: TwoSampleTest
    pair: TwoSampleTest


@dataclass(frozen=True)
class Health:
    """The health of a hierarchy.

    Attributes:
        levels: Each level, from 1 up.
        data: Test of the decoder's ``x`` against the data.
        spread: Mean distance between two samples over that between two data; an estimate.
        alarms: What is wrong, in words; empty if nothing is wrong.
    """

    levels: tuple[LevelHealth, ...]
    data: TwoSampleTest
    spread: float
    alarms: tuple[str, ...]


@torch.no_grad()
def examine(hierarchy: Hierarchy, x: Tensor, *, noise: float = 0.1, seed: int = 0) -> Health:
    """Examine a hierarchy on held-out data.

    Args:
        hierarchy: A hierarchy in evaluation mode; given the contexts of the data, if it takes one.
        x: ``(n, *shape of x)``, at least 16; the information needs 256 or more.
        noise: Standard deviation of noise added to data and samples before they are compared, in units of x, so that
            the steps of 8-bit pixels do not separate them. A lower bound on D_JS with noise also holds without.
        seed: Seed of all draws and of the classifiers.
    """
    with seeded(seed, hierarchy.prior.device):
        q, p = hierarchy.encode(x, sample=True), hierarchy.sample_states(len(x))
        means = hierarchy.encode(x)
        sampled = at_random(hierarchy, _DRAWN)
        recovered, used = recovery(sampled, _DRAWN), decoder_use(sampled, _DRAWN)
        bottom = hierarchy.spaces[0].name
        spread = _distance(p[bottom]) / max(_distance(x), 1e-12)
        for states in (q, p):
            states[bottom] = states[bottom] + noise * torch.randn_like(x)
        levels = []
        for level, (below, own) in enumerate(pairwise(space.name for space in hierarchy.spaces), 1):
            aggregate, pair = _compared(q, p, below, own, seed)
            levels.append(
                LevelHealth(
                    level,
                    own,
                    information=information(means[own], q[own]) if len(x) >= 2 * _GROUP else None,
                    error=_error(hierarchy, x, means[own], level),
                    error_shuffled=_error(hierarchy, x, means[own].roll(1, 0), level),
                    dead=float((means[own].std(0) < _DEAD).double().mean()),
                    recovery=recovered.in_one_step[level - 1],
                    recovery_from_x=recovered.from_x[level - 1],
                    decoder_use=used[level - 1],
                    aggregate=aggregate,
                    pair=pair,
                )
            )
        data = two_sample_test(q[bottom], p[bottom], seed=seed)
    return Health(tuple(levels), data, spread, tuple(_alarms(levels, spread)))


def _compared(
    q: dict[str, Tensor], p: dict[str, Tensor], below: str, own: str, seed: int
) -> tuple[TwoSampleTest, TwoSampleTest]:
    """The tests of a latent, and of it together with the state below."""
    pairs = (torch.cat([states[below].flatten(1), states[own].flatten(1)], 1) for states in (q, p))
    return two_sample_test(q[own], p[own], seed=seed), two_sample_test(*pairs, seed=seed)


@torch.no_grad()
def information(means: Tensor, z: Tensor) -> Quantity:
    """A lower bound on the mutual information of ``z_l`` and the data (InfoNCE, Poole et al. 2019, Eq. 12).

    It measures how well a drawn ``z_l`` finds its own datum among 128. The critic is the distance to the mean ``z_l``
    of each datum, in units of the encoder's noise. Any critic gives a bound. The units are fitted on the first half of
    the data, and the bound is taken on the second half.

    Args:
        means: ``z_l`` along the means, ``(n, *shape of z_l)``.
        z: ``z_l`` drawn by the encoder for the same data, ``(n, *shape of z_l)`` with n ≥ 256.

    Returns:
        The bound in nats, at most log 128. Its standard error is over groups of 128, where there are several.
    """
    means, z = means.flatten(1).double(), z.flatten(1).double()
    half = len(z) // 2
    scale = (z - means)[:half].square().mean(0).sqrt()
    scale = torch.maximum(scale, 1e-3 * means[:half].std(0)).clamp_min(1e-6)
    means, z = means[half:] / scale, z[half:] / scale
    bounds = []
    for first in range(0, len(z) - _GROUP + 1, _GROUP):
        group = slice(first, first + _GROUP)
        scores = -0.5 * torch.cdist(z[group], means[group], compute_mode="donot_use_mm_for_euclid_dist").square()
        bounds.append((scores.diagonal() - scores.logsumexp(1)).mean() + math.log(_GROUP))
    return Quantity.mean(torch.stack(bounds), "lower bound", "nats")


def _error(hierarchy: Hierarchy, x: Tensor, z: Tensor, level: int) -> Quantity:
    rebuilt = hierarchy.decode(z, level)[hierarchy.spaces[0].name]
    return Quantity.root_mean_square((x - rebuilt).flatten(1).square().mean(1), "estimate", "per element")


def _distance(x: Tensor) -> float:
    """The mean distance between two neighbouring rows."""
    return float((x[1:] - x[:-1]).flatten(1).norm(dim=1).mean())


def _alarms(levels: list[LevelHealth], spread: float) -> Iterator[str]:
    for level in levels:
        yield from _level_alarms(level)
    if spread < _LEAST_SPREAD:
        yield f"samples have collapsed: they differ {spread:.2f} times as much as data do"


def _level_alarms(found: LevelHealth) -> Iterator[str]:
    name = found.name
    if found.information is not None and found.information.value < _LEAST_INFORMATION:
        yield f"{name} seems to be ignored by the encoder: no information on x in it could be shown"
    if not found.recovery >= LEAST:
        why = (
            f"the decoder ignores it: another sample's {name} leads as near to the state below"
            if found.decoder_use < _LEAST_USE
            else "the decoder uses it, and the encoder does not find it"
        )
        yield f"{name} is not recovered from the decoder's own samples (R² {found.recovery:.2f}): {why}"
    ratio = found.error_shuffled.value / max(found.error.value, 1e-12)
    if ratio < _LEAST_USE:
        yield (
            f"{name} is ignored by the decoder: with another datum's {name} the error of reconstructions is only "
            f"{ratio:.2f} times as large"
        )
    if found.dead > _MOST_DEAD:
        yield f"{name} has collapsed entries: {found.dead:.0%} hardly vary over the data"
    bound = found.pair.js_bound.value
    if bound > _MOST_DIVERGENCE:
        yield f"the joints differ at level {found.level}: D_JS of the pair is at least {bound:.2f} of 0.69 nats"
