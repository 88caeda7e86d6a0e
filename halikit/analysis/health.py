"""Whether a trained hierarchy is well: what each latent is used for, and where the two joints differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from halikit.analysis.quantity import Quantity
from halikit.analysis.recovery import LEAST, decoder_use, recovery
from halikit.analysis.two_sample import TwoSampleTest, two_sample_test
from halikit.hierarchy import Hierarchy
from halikit.utils.random import seeded

__all__ = ["Health", "LevelHealth", "examine", "information"]

# Data among which a latent has to find its own: the bound on the information is at most the logarithm of that.
_CROWD = 128
# An entry whose mean varies less than that over the data, in its own units, says nothing.
_DEAD = 0.05

# Samples of the decoder's joint on which recovery is measured.
_DRAWN = 1000

# What counts as an alarm.
_LITTLE_INFORMATION = 0.1
_LITTLE_USE = 1.05
_MANY_DEAD = 0.1
_TOLD_APART = 0.35
_ALIKE = 0.5


@dataclass(frozen=True)
class LevelHealth:
    """One latent and its link to the state below.

    Attributes:
        level: l.
        name: Of the latent.
        information: What the encoder's ``z_l`` tells of ``x``: a lower bound (InfoNCE) on their mutual information in
            nats, at most log 128 = 4.85; ``None`` for fewer than 256 data.
        error: Root mean square error of reconstructions from ``z_l`` per element; an estimate.
        error_shuffled: The same with the ``z_l`` of another datum: an ablation, an estimate.
        dead: Share of the entries of ``z_l`` whose mean hardly varies over the data; an estimate.
        recovery: How much of the decoder's own ``z_l`` the encoder recovers from its ``z_{l−1}``
            (:mod:`halikit.analysis.recovery`); an estimate.
        recovery_from_x: The same from its ``x``.
        decoder_use: How much farther the decoder's ``z_{l−1}`` is from where another sample's ``z_l`` leads than from
            where its own does; 1 where the decoder ignores ``z_l``; an estimate.
        aggregate: The encoder's ``z_l`` over the data against the decoder's, the prior at the top.
        pair: The encoder's ``(z_{l−1}, z_l)`` against the decoder's: where the joints differ, some pair does.
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
    """A hierarchy's state.

    Attributes:
        levels: From 1 up.
        data: Samples of ``x`` against the data.
        spread: Mean distance between two samples over that between two data; an estimate.
        alarms: What is wrong, in words; empty if nothing is.
    """

    levels: tuple[LevelHealth, ...]
    data: TwoSampleTest
    spread: float
    alarms: tuple[str, ...]


@torch.no_grad()
def examine(hierarchy: Hierarchy, x: Tensor, *, noise: float = 0.1, seed: int = 0) -> Health:
    """Examine a hierarchy on held-out data.

    Args:
        hierarchy: In evaluation mode.
        x: ``(n, *shape of x)``, 256 or more for the information, 16 at least.
        noise: Standard deviation of noise added to data and samples alike before they are told apart, in units of x,
            so that it is not the steps of 8-bit pixels that tell them apart. What is proven of them with noise holds
            without.
        seed: Of everything drawn.
    """
    with seeded(seed, hierarchy.prior.device):
        q, p = hierarchy.encode(x, sample=True), hierarchy.sample_states(len(x))
        means = hierarchy.encode(x)
        recovered, used = recovery(hierarchy, _DRAWN), decoder_use(hierarchy, _DRAWN)
        names = [space.name for space in hierarchy.spaces]
        spread = _spread(p[names[0]]) / max(_spread(x), 1e-12)
        for states in (q, p):
            states[names[0]] = states[names[0]] + noise * torch.randn_like(x)
        levels = []
        for level in range(1, len(hierarchy) + 1):
            below, own = names[level - 1], names[level]
            deviation = means[own].std(0)
            with torch.enable_grad():
                aggregate = two_sample_test(q[own], p[own], seed=seed)
                pair = two_sample_test(_joined(q[below], q[own]), _joined(p[below], p[own]), seed=seed)
            levels.append(
                LevelHealth(
                    level,
                    own,
                    information=information(means[own], q[own]) if len(x) >= 2 * _CROWD else None,
                    error=_error(hierarchy, x, means[own], level),
                    error_shuffled=_error(hierarchy, x, means[own].roll(1, 0), level),
                    dead=float((deviation < _DEAD).double().mean()),
                    recovery=recovered.in_one_step[level - 1],
                    recovery_from_x=recovered.from_x[level - 1],
                    decoder_use=used[level - 1],
                    aggregate=aggregate,
                    pair=pair,
                )
            )
        with torch.enable_grad():
            data = two_sample_test(q[names[0]], p[names[0]], seed=seed)
    return Health(tuple(levels), data, spread, tuple(_alarms(levels, spread)))


@torch.no_grad()
def information(means: Tensor, z: Tensor) -> Quantity:
    """What ``z_l`` tells of the data: a lower bound on their mutual information (InfoNCE, Poole et al. 2019, Eq. 12).

    How well ``z_l`` finds the datum that it came from among 128, by its distance to where each encodes along the means,
    in units of what is left between the two. Any critic gives a bound; this one is fitted on the first half of the data
    and used on the second.

    Args:
        means: ``z_l`` along the means, ``(n, *its shape)``.
        z: ``z_l`` drawn by the encoder for the same data, the same shape; 256 or more.

    Returns:
        In nats, at most log 128; its standard error is over crowds where there are several.
    """
    means, z = means.flatten(1).double(), z.flatten(1).double()
    half = len(z) // 2
    scale = (z - means)[:half].square().mean(0).sqrt()
    scale = torch.maximum(scale, 1e-3 * means[:half].std(0)).clamp_min(1e-6)
    means, z = means[half:] / scale, z[half:] / scale
    bounds = []
    for first in range(0, len(z) - _CROWD + 1, _CROWD):
        crowd = slice(first, first + _CROWD)
        scores = -0.5 * torch.cdist(z[crowd], means[crowd], compute_mode="donot_use_mm_for_euclid_dist").square()
        bounds.append((scores.diagonal() - scores.logsumexp(1)).mean() + math.log(_CROWD))
    return Quantity.mean(torch.stack(bounds), "lower bound", "nats")


def _error(hierarchy: Hierarchy, x: Tensor, z: Tensor, level: int) -> Quantity:
    rebuilt = hierarchy.decode(z, level)[hierarchy.spaces[0].name]
    return Quantity.mean((x - rebuilt).flatten(1).square().mean(1).sqrt(), "estimate", "per element")


def _joined(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a.flatten(1), b.flatten(1)], 1)


def _spread(x: Tensor) -> float:
    return float((x[1:] - x[:-1]).flatten(1).norm(dim=1).mean())


def _alarms(levels: list[LevelHealth], spread: float) -> list[str]:
    alarms = []
    for found in levels:
        name = found.name
        if found.information is not None and found.information.value < _LITTLE_INFORMATION:
            alarms.append(f"{name} seems to be ignored by the encoder: no information on x in it could be shown")
        if not found.recovery >= LEAST:
            why = (
                f"the decoder ignores it: another sample's {name} leads as near to the state below"
                if found.decoder_use < _LITTLE_USE
                else "the decoder uses it, and the encoder does not find it"
            )
            alarms.append(f"{name} is not recovered from the decoder's own samples (R² {found.recovery:.2f}): {why}")
        ratio = found.error_shuffled.value / max(found.error.value, 1e-12)
        if ratio < _LITTLE_USE:
            alarms.append(
                f"{name} is ignored by the decoder: with another datum's {name} reconstructions are only "
                f"{ratio:.2f} times as far off"
            )
        if found.dead > _MANY_DEAD:
            alarms.append(f"{name} has collapsed entries: {found.dead:.0%} hardly vary over the data")
        if found.pair.js_bound.value > _TOLD_APART:
            bound = f"{found.pair.js_bound.value:.2f} of 0.69 nats"
            alarms.append(f"the joints differ at level {found.level}: D_JS of the pair is at least {bound}")
    if spread < _ALIKE:
        alarms.append(f"samples have collapsed: they differ {spread:.2f} times as much as data do")
    return alarms
