"""Propositions 1 and 2, the identity behind them, and both lemmas (sections 3.2 and A.2), checked by numbers.

With q the encoder's joint (Eq. 3) and p the decoder's (Eq. 4), for every level l

    E_q[L^l] = H(x|z_l) + KL(q(x, z_l) ‖ p(x, z_l)) − KL(q(z_l) ‖ p(z_l))        the identity
    E_q[L^l] ≥ H(x|z_l)                                                           Proposition 2, Eq. 7
    E_q[L^l] − H(x|z_l) ≤ K · D_JS(p(x, z_1 … z_L), q(x, z_1 … z_L))              Proposition 1, Eq. 6

where H is the conditional entropy under q, and K is finite only if q/p is bounded. The paper's proof has the arguments
of the divergences in the other order, which contradicts the identity. The proof uses two lemmas: divergences of joints
are at least those of their marginals (Eq. 11), and KL ≤ χ² ≤ K · D_JS where q/p is bounded (Eqs. 12 and 13). D_JS is
in [0, log 2]; all terms are in nats.

For linear-Gaussian hierarchies all terms are exact (closed forms) except D_JS, an integral that is estimated. For
hierarchies over finite spaces all terms are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from halikit.analysis.finite import FiniteJoints, random_finite_joints
from halikit.analysis.quantity import Quantity
from halikit.hierarchy import Hierarchy, Link
from halikit.kernels import Gaussian, LinearGaussian, LinearGaussianKernel
from halikit.priors import StandardNormal
from halikit.spaces import Space

__all__ = [
    "Case",
    "LevelTerms",
    "Verdict",
    "examine",
    "finite_terms",
    "gaussian_terms",
    "random_linear_gaussian",
    "tight_constant",
    "verdicts",
]

# Quasi-random points for D_JS, and independent scramblings of them, which give the standard error.
_POINTS, _SCRAMBLES = 1024, 8
# A statement counts as violated beyond this rounding error, relative to the size of its sides, and this number of
# standard errors of D_JS.
_TOLERANCE = 1e-9
_DEVIATIONS = 5.0


@dataclass(frozen=True)
class LevelTerms:
    """Both sides of every statement for one level, in nats.

    Attributes:
        level: Level l.
        error: ``E_q[L^l]``, from the conditional density ``p(x|z_l)``.
        entropy: ``H(x|z_l)`` under q.
        kl_pair: ``KL(q(x, z_l) ‖ p(x, z_l))``.
        kl_latent: ``KL(q(z_l) ‖ p(z_l))``.
        kl_joint: ``KL(q ‖ p)`` of all states.
        chi2_pair: ``χ²(q(x, z_l) ‖ p(x, z_l))``; infinite where it diverges.
        js_pair: ``D_JS`` of ``(x, z_l)``.
        js_joint: ``D_JS`` of all states.
        constant: Smallest K for which ``KL ≤ K · D_JS`` follows from the bound on q/p; infinite without a bound.
        paper_constant: K of Lemma 2, by way of χ².
    """

    level: int
    error: Quantity
    entropy: Quantity
    kl_pair: Quantity
    kl_latent: Quantity
    kl_joint: Quantity
    chi2_pair: Quantity
    js_pair: Quantity
    js_joint: Quantity
    constant: float
    paper_constant: float


@dataclass(frozen=True)
class Case:
    """A hierarchy that was examined.

    Attributes:
        kind: Kind of the hierarchy: linear-Gaussian, linear-Gaussian with bounded q/p, or over finite spaces.
        terms: Terms of each level, from 1 up.
    """

    kind: Literal["gaussian", "bounded gaussian", "finite"]
    terms: tuple[LevelTerms, ...]


class Verdict(NamedTuple):
    """The check of a statement on many cases.

    Attributes:
        name: Name of the statement.
        statement: The statement in symbols.
        checked: Number of checks.
        violations: Number of checks that failed by more than rounding and, where D_JS is an estimate, by more than five
            of its standard errors.
        tightest: Smallest slack, right side less left side; for an equality the largest difference. In nats.
    """

    name: str
    statement: str
    checked: int
    violations: int
    tightest: float


def tight_constant(bound: float) -> float:
    """The smallest K with ``KL(q ‖ p) ≤ K · D_JS(p, q)`` for all q and p with ``q/p ≤ bound``.

    Both are f-divergences of q from p. The quotient of their generators,
    ``(r log r − r + 1) / (½ r log(2r/(1+r)) + ½ log(2/(1+r)))``, grows with r; it is 4 at r = 1.

    Args:
        bound: Upper bound on q/p, at least 1.
    """
    return _quotient(bound, lambda r: r * math.log(r) - r + 1, at_one=4.0)


def _paper_constant(bound: float) -> float:
    """The smallest K with ``χ²(q ‖ p) ≤ K · D_JS(p, q)`` (Lemma 2); the generator of χ² is ``(r − 1)²``."""
    return _quotient(bound, lambda r: (r - 1) ** 2, at_one=8.0)


def _quotient(r: float, generator: Callable[[float], float], at_one: float) -> float:
    if math.isinf(r):
        return r
    if r - 1 < 1e-4:
        return at_one
    return generator(r) / (0.5 * (r * math.log(2 * r / (1 + r)) + math.log(2 / (1 + r))))


# Linear-Gaussian hierarchies


@torch.no_grad()
def gaussian_terms(hierarchy: Hierarchy, data: Gaussian) -> tuple[LevelTerms, ...]:
    """All terms of a linear-Gaussian hierarchy; exact, except D_JS.

    Args:
        hierarchy: A hierarchy of linear-Gaussian kernels with a standard normal prior.
        data: ``q(x)``.

    Raises:
        TypeError: If a kernel or the prior is of another kind.
    """
    q, p, blocks = _gaussian_joints(hierarchy, data)
    js_joint = _gaussian_js(q, p)
    terms = []
    for level in range(1, len(hierarchy) + 1):
        pair = torch.cat([blocks[0], blocks[level]])
        q_pair, p_pair = _marginal(q, pair), _marginal(p, pair)
        q_latent, p_latent = _marginal(q, blocks[level]), _marginal(p, blocks[level])
        decoder = hierarchy[:level].decoder
        assert isinstance(decoder, LinearGaussian)
        bound = _largest_ratio(q_pair, p_pair)
        terms.append(
            LevelTerms(
                level,
                error=_exact(_expected_error(q_pair, decoder)),
                entropy=_exact(q_pair.entropy - q_latent.entropy),
                kl_pair=_exact(q_pair.kl(p_pair)),
                kl_latent=_exact(q_latent.kl(p_latent)),
                kl_joint=_exact(q.kl(p)),
                chi2_pair=_exact(_gaussian_chi2(q_pair, p_pair)),
                js_pair=_gaussian_js(q_pair, p_pair),
                js_joint=js_joint,
                constant=tight_constant(bound),
                paper_constant=_paper_constant(bound),
            )
        )
    return tuple(terms)


def _gaussian_joints(hierarchy: Hierarchy, data: Gaussian) -> tuple[Gaussian, Gaussian, list[Tensor]]:
    """Both joints over ``x, z_1, …, z_L``, and the indices of the elements of each state."""
    ups, downs = ([getattr(link, way) for link in hierarchy] for way in ("up", "down"))
    if not isinstance(hierarchy.prior, StandardNormal) or not all(isinstance(k, LinearGaussian) for k in ups + downs):
        raise TypeError("closed forms need linear-Gaussian kernels throughout and a standard normal prior")
    sizes = [space.size for space in hierarchy.spaces]
    top = torch.eye(sizes[-1]).to(data.mean)
    q = _chained(data, ups)
    p = _chained(Gaussian(torch.zeros_like(top[0]), top), downs[::-1])
    # The chain of the decoder begins at the top; its states are put into the order of the encoder.
    return q, _marginal(p, torch.cat(_blocks(sizes[::-1])[::-1])), _blocks(sizes)


def _exact(value: Tensor | float) -> Quantity:
    return Quantity(float(value), "exact", "nats")


def _chained(start: Gaussian, kernels: Sequence[LinearGaussian]) -> Gaussian:
    """The distribution of all states of a Markov chain, in order."""
    mean, covariance = start
    size = len(mean)
    for kernel in kernels:
        weight = kernel.weight
        last = covariance[-size:, -size:]
        cross = covariance[:, -size:] @ weight.T
        corner = weight @ last @ weight.T + kernel.covariance
        covariance = torch.cat([torch.cat([covariance, cross], 1), torch.cat([cross.T, corner], 1)])
        mean = torch.cat([mean, weight @ mean[-size:] + kernel.bias])
        size = len(corner)
    return Gaussian(mean, covariance)


def _blocks(sizes: Sequence[int]) -> list[Tensor]:
    """The indices of the elements of each state in the concatenation of all states."""
    return list(torch.arange(sum(sizes)).split(list(sizes)))


def _marginal(measure: Gaussian, index: Tensor) -> Gaussian:
    return Gaussian(measure.mean[index], measure.covariance[index][:, index])


def _expected_error(q: Gaussian, decoder: LinearGaussian) -> Tensor:
    """``E_q[−log N(x; Vz + c, R)]`` from the moments of ``x − Vz − c``."""
    d = decoder.target.size
    residual = torch.cat([torch.eye(d).to(decoder.weight), -decoder.weight], 1)
    mean = residual @ q.mean - decoder.bias
    moment = residual @ q.covariance @ residual.T + torch.outer(mean, mean)
    r = decoder.covariance
    return 0.5 * (d * math.log(2 * math.pi) + r.logdet() + torch.linalg.solve(r, moment).trace())


def _largest_ratio(q: Gaussian, p: Gaussian) -> float:
    """The maximum of q/p; infinite unless p's covariance dominates q's."""
    excess = p.covariance - q.covariance
    if torch.linalg.eigvalsh(excess).min() <= 1e-12:
        return math.inf
    delta = q.mean - p.mean
    log_ratio = 0.5 * (p.covariance.logdet() - q.covariance.logdet() + delta @ torch.linalg.solve(excess, delta))
    return math.exp(min(float(log_ratio), 700.0))


def _gaussian_chi2(q: Gaussian, p: Gaussian) -> float:
    """``∫ q²/p − 1``; infinite where the integral diverges."""
    a, b = torch.linalg.inv(q.covariance), torch.linalg.inv(p.covariance)
    m = 2 * a - b
    if torch.linalg.eigvalsh(m).min() <= 0:
        return math.inf
    b_delta = b @ (q.mean - p.mean)
    exponent = b_delta @ torch.linalg.solve(m, b_delta) + (q.mean - p.mean) @ b_delta
    return math.expm1(min(float(a.logdet() + 0.5 * (exponent - b.logdet() - m.logdet())), 700.0))


def _gaussian_js(q: Gaussian, p: Gaussian) -> Quantity:
    """``D_JS`` by quasi-Monte Carlo: an estimate, with a standard error from independent scramblings."""
    measures = [torch.distributions.MultivariateNormal(m.mean, m.covariance) for m in (q, p)]
    normal = _normal_points(len(q.mean)).to(q.mean)
    estimates = torch.zeros(_SCRAMBLES, dtype=torch.float64)
    for this, other in (measures, measures[::-1]):
        points = this.loc + normal @ this.scale_tril.T
        # log(2 this / (this + other)), from the difference of log-densities, so that nothing underflows.
        log_ratio = other.log_prob(points) - this.log_prob(points)
        estimates += 0.5 * (math.log(2) - softplus(log_ratio)).double().mean(1)
    return Quantity.mean(estimates, "estimate", "nats")


@cache
def _normal_points(dimension: int) -> Tensor:
    """Quasi-random points of a standard normal, ``(scramblings, points, dimension)``."""
    engines = [torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed) for seed in range(_SCRAMBLES)]
    uniform = torch.stack([engine.draw(_POINTS, dtype=torch.float64) for engine in engines])
    return math.sqrt(2) * torch.erfinv(2 * uniform.clamp(1e-12, 1 - 1e-12) - 1)


# Finite spaces


def finite_terms(joints: FiniteJoints) -> tuple[LevelTerms, ...]:
    """All terms of a hierarchy over finite spaces, exact.

    Args:
        joints: Both joints; all probabilities of p are positive.
    """
    q, p = joints
    terms = []
    for level in range(1, q.dim()):
        others = [axis for axis in range(q.dim()) if axis not in (0, level)]
        q_pair, p_pair = (joint.sum(others) if others else joint for joint in (q, p))
        q_latent, p_latent = q_pair.sum(0), p_pair.sum(0)
        bound = float((q_pair / p_pair).max())
        error = -(q_pair * (p_pair / p_latent).log()).sum()
        terms.append(
            LevelTerms(
                level,
                error=_exact(error),
                entropy=_exact(-_kl(q_pair, q_latent.expand_as(q_pair))),
                kl_pair=_exact(_kl(q_pair, p_pair)),
                kl_latent=_exact(_kl(q_latent, p_latent)),
                kl_joint=_exact(_kl(q, p)),
                chi2_pair=_exact(((q_pair - p_pair).square() / p_pair).sum()),
                js_pair=_exact(_js(q_pair, p_pair)),
                js_joint=_exact(_js(q, p)),
                constant=tight_constant(bound),
                paper_constant=_paper_constant(bound),
            )
        )
    return tuple(terms)


def _kl(q: Tensor, p: Tensor) -> Tensor:
    return (torch.xlogy(q, q) - torch.xlogy(q, p)).sum()


def _js(q: Tensor, p: Tensor) -> Tensor:
    middle = (q + p) / 2
    return 0.5 * (_kl(q, middle) + _kl(p, middle))


# Random hierarchies


@torch.no_grad()
def random_linear_gaussian(
    sizes: Sequence[int], generator: torch.Generator, *, bounded: bool = False
) -> tuple[Hierarchy, Gaussian]:
    """A random linear-Gaussian hierarchy in float64 with a random ``q(x)``.

    Args:
        sizes: Numbers of elements of ``x, z_1, …, z_L``.
        generator: Source of randomness.
        bounded: Make q/p bounded, so that K is finite: the encoder is the decoder's posterior with less noise and a
            small random change.
    """
    spaces = [Space("x" if i == 0 else f"z{i}", (size,)) for i, size in enumerate(sizes)]
    downs = [_random_kernel(upper, lower, generator) for lower, upper in pairwise(spaces)]
    if not bounded:
        ups = [_random_kernel(lower, upper, generator) for lower, upper in pairwise(spaces)]
        return _stacked(ups, downs), _random_measure(sizes[0], generator)
    marginal = Gaussian(torch.zeros(sizes[-1], dtype=torch.float64), torch.eye(sizes[-1], dtype=torch.float64))
    posteriors = []
    for down in reversed(downs):
        posteriors.append(down.posterior(marginal))
        marginal = down.marginal(marginal)
    shrink = 0.3 + 0.6 * float(torch.rand((), generator=generator))
    disturbance = 0.1
    while True:
        ups = [_narrowed(kernel, shrink, disturbance, generator) for kernel in reversed(posteriors)]
        mean = marginal.mean + disturbance * _normal(sizes[0], generator=generator)
        found = _stacked(ups, downs), Gaussian(mean.detach(), (shrink * marginal.covariance).detach())
        if _is_bounded(*found):
            return found
        # A kernel belongs to one link, so the next attempt needs new kernels.
        downs = [LinearGaussianKernel(d.source, d.target, d.weight, d.bias, d.covariance) for d in downs]
        disturbance /= 2


def _is_bounded(hierarchy: Hierarchy, data: Gaussian) -> bool:
    """Whether q/p is bounded for x with each latent."""
    q, p, (x, *latents) = _gaussian_joints(hierarchy, data)
    pairs = [torch.cat([x, z]) for z in latents]
    return all(math.isfinite(_largest_ratio(_marginal(q, pair), _marginal(p, pair))) for pair in pairs)


def _normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _random_covariance(size: int, generator: torch.Generator) -> Tensor:
    factor = _normal(size, size, generator=generator) / math.sqrt(size)
    return factor @ factor.T + 0.3 * torch.eye(size, dtype=torch.float64)


def _random_measure(size: int, generator: torch.Generator) -> Gaussian:
    return Gaussian(_normal(size, generator=generator), _random_covariance(size, generator))


def _random_kernel(source: Space, target: Space, generator: torch.Generator) -> LinearGaussianKernel:
    weight = _normal(target.size, source.size, generator=generator) / math.sqrt(source.size)
    measure = _random_measure(target.size, generator)
    return LinearGaussianKernel(source, target, weight, measure.mean, measure.covariance)


def _narrowed(
    kernel: LinearGaussianKernel, shrink: float, disturbance: float, generator: torch.Generator
) -> LinearGaussianKernel:
    weight = kernel.weight + disturbance * _normal(*kernel.weight.shape, generator=generator)
    bias = kernel.bias + disturbance * _normal(*kernel.bias.shape, generator=generator)
    return LinearGaussianKernel(kernel.source, kernel.target, weight, bias, shrink * kernel.covariance)


def _stacked(ups: Sequence[LinearGaussian], downs: Sequence[LinearGaussian]) -> Hierarchy:
    return Hierarchy([Link(up, down) for up, down in zip(ups, downs, strict=True)]).double()


# Verdicts


def examine(count: int, levels: int = 3, *, seed: int = 0) -> tuple[Case, ...]:
    """Compute all terms of random hierarchies with 1 to ``levels`` levels (Propositions 1 and 2).

    Args:
        count: Number of hierarchies of each kind, at least 1.
        levels: Largest number of levels, at least 1.
        seed: Seed of the hierarchies.
    """
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for i in range(count):
        depth = 1 + i % levels
        sizes = torch.randint(1, 4, (depth + 1,), generator=generator).tolist()
        for kind, bounded in (("gaussian", False), ("bounded gaussian", True)):
            found = random_linear_gaussian(sizes, generator, bounded=bounded)
            cases.append(Case(kind, gaussian_terms(*found)))  # type: ignore[arg-type]
        counts = torch.randint(2, 6, (depth + 1,), generator=generator).tolist()
        cases.append(Case("finite", finite_terms(random_finite_joints(counts, generator))))
    return tuple(cases)


def verdicts(cases: Sequence[Case]) -> tuple[Verdict, ...]:
    """Check each statement on each level of each case that it applies to."""
    terms = [term for case in cases for term in case.terms]
    identity = [(t.error.value, t.entropy.value + t.kl_pair.value - t.kl_latent.value) for t in terms]
    return (
        _equality("identity", "E[L] = H(x|z) + KL(q(x,z)‖p(x,z)) − KL(q(z)‖p(z))", identity),
        *(_inequality(name, statement, sides) for name, statement, sides in _inequalities(cases, terms)),
    )


def _inequalities(
    cases: Sequence[Case], terms: Sequence[LevelTerms]
) -> Iterator[tuple[str, str, list[tuple[Quantity, Quantity, float]]]]:
    """Name, statement and sides of each inequality; the sides are those of :func:`_inequality`."""
    bounded = [term for term in terms if math.isfinite(term.constant)]
    gaps = [(_exact(t.error.value - t.entropy.value), t.js_joint, t.constant) for t in bounded]
    yield "Proposition 2, Eq. 7", "H(x|z) ≤ E[L]", [(t.entropy, t.error, 1.0) for t in terms]
    yield "Proposition 1, Eq. 6", "E[L] − H(x|z) ≤ K D_JS(p, q)", gaps
    statement = "KL(q(x,z)‖p(x,z)) ≤ KL(q‖p)"
    yield "Lemma 1, Eq. 11, KL", statement, [(t.kl_pair, t.kl_joint, 1.0) for t in terms]
    statement = "D_JS(p(x,z), q(x,z)) ≤ D_JS(p, q)"
    yield "Lemma 1, Eq. 11, D_JS", statement, [(t.js_pair, t.js_joint, 1.0) for t in terms]
    statement = "KL(q(x,z)‖p(x,z)) ≤ K D_JS(p(x,z), q(x,z))"
    yield "Lemma 2, Eq. 12", statement, [(t.kl_pair, t.js_pair, t.constant) for t in bounded]
    statement = "KL(q(x,z)‖p(x,z)) ≤ χ²(q(x,z)‖p(x,z))"
    yield "Lemma 2, Eq. 13, left", statement, [(t.kl_pair, t.chi2_pair, 1.0) for t in terms]
    statement = "χ²(q(x,z)‖p(x,z)) ≤ K' D_JS(p(x,z), q(x,z))"
    yield "Lemma 2, Eq. 13, right", statement, [(t.chi2_pair, t.js_pair, t.paper_constant) for t in bounded]
    steps = [(below, above) for case in cases for below, above in pairwise(case.terms)]
    yield "entropies", "H(x|z_l) ≤ H(x|z_{l+1})", [(below.entropy, above.entropy, 1.0) for below, above in steps]


def _equality(name: str, statement: str, sides: Sequence[tuple[float, float]]) -> Verdict:
    gaps = [abs(left - right) for left, right in sides]
    wrong = sum(gap > _TOLERANCE * (1 + abs(left)) for gap, (left, _) in zip(gaps, sides, strict=True))
    return Verdict(name, statement, len(sides), wrong, max(gaps, default=0.0))


def _inequality(name: str, statement: str, sides: Sequence[tuple[Quantity, Quantity, float]]) -> Verdict:
    """The check of ``left ≤ factor · right``."""
    violations = 0
    slacks = []
    for left, right, factor in sides:
        slack = factor * right.value - left.value
        deviation = (left.standard_error or 0.0) + factor * (right.standard_error or 0.0)
        violations += not slack >= -_TOLERANCE * (1 + abs(left.value)) - _DEVIATIONS * deviation
        slacks.append(slack)
    return Verdict(name, statement, len(sides), violations, min(slacks, default=math.inf))
