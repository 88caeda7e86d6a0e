"""Reconstructions from each level (section 3.2) and their errors: in nats (Eq. 5), Euclidean, embedded (Eq. 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from halikit.analysis.batched import batches
from halikit.analysis.quantity import Kind, Quantity
from halikit.discriminator import CONTEXT, Discriminator
from halikit.hierarchy import Hierarchy
from halikit.kernels import (
    Composite,
    DensityKernel,
    DeterministicKernel,
    Kernel,
    LinearGaussian,
    NoDensityError,
    compose,
)
from halikit.utils.modes import evaluating

__all__ = [
    "Distances",
    "ReconstructionError",
    "distances",
    "draws",
    "embedded_distance",
    "fit_observation_scale",
    "js_bound",
    "reconstruction_error",
]

# States that pass through the networks at a time; each draw counts.
_CHUNK = 16_384


@dataclass(frozen=True)
class ReconstructionError:
    """``L^l(x) = E_{z_l ~ T_{z_l|x}}[−log p(x|z_l)]`` of each datum (Eq. 5).

    Attributes:
        level: Level l.
        values: ``(n,)``, in nats.
        kind: Whether each value is exact, an unbiased estimate, or a stochastic upper bound.
        num_samples: Draws of ``z_l`` for each datum; 0 if none were needed.
        num_between: Draws of the states in between for each draw of ``z_l``; 0 if none were needed.
        effective_sample_size: Mean effective share of these draws, in (0, 1]; 1 if none were needed. Near
            ``1 / num_between`` the bound is loose.
    """

    level: int
    values: Tensor
    kind: Kind
    num_samples: int
    num_between: int
    effective_sample_size: float

    @property
    def mean(self) -> Quantity:
        """``E_{q(x)}[L^l(x)]`` in nats, an estimate or a bound, with its standard error over data and draws."""
        return Quantity.mean(self.values, "estimate" if self.kind == "exact" else self.kind, "nats")


@torch.no_grad()
def reconstruction_error(
    hierarchy: Hierarchy,
    x: Tensor,
    level: int | None = None,
    *,
    num_samples: int = 16,
    num_between: int = 64,
    scale: float | None = None,
    generator: torch.Generator | None = None,
) -> ReconstructionError:
    """``L^l(x)`` of Eq. 5 for each datum.

    Linear-Gaussian kernels give it exactly. Where ``p(x|z_l)`` has a density, such as at level 1, it is an unbiased
    estimate: a mean over ``num_samples`` draws of ``z_l``. At other levels that density is itself an expectation, and
    its logarithm can only be bounded from below. The error is then an upper bound; it falls as ``num_between`` grows.

    Args:
        hierarchy: A hierarchy in evaluation mode.
        x: ``(n, *shape of x)``.
        level: Level, between 1 and L; L by default.
        num_samples: Draws of ``z_l`` for each datum.
        num_between: Draws of ``z_1 … z_{l−1}`` for each draw of ``z_l``; the encoder proposes them if it has densities.
        scale: Standard deviation of the Gaussian around a deterministic ``p(x|z_1)``, in units of x.
        generator: Source of randomness.

    Raises:
        NoDensityError: If a density that is needed does not exist, and ``scale`` does not give one.
        ValueError: If there is no such level, or ``scale`` is given though ``p(x|z_1)`` has a density.
    """
    level = len(hierarchy) if level is None else level
    stack = hierarchy[:level]
    if len(stack) != level:
        raise ValueError(f"level must be between 1 and {len(hierarchy)}, got {level}")
    decoder = _with_density(stack, scale)
    encoder = stack.encoder
    if isinstance(encoder, LinearGaussian) and isinstance(decoder, LinearGaussian):
        return ReconstructionError(level, _expected_error(encoder, decoder, x), "exact", 0, 0, 1.0)
    is_exact = isinstance(decoder, DensityKernel)
    per_datum = num_samples * (1 if is_exact else num_between)
    found = [
        _estimated(encoder, decoder, chunk, num_samples, num_between, generator)
        for _, chunk in batches(x, max(1, _CHUNK // per_datum))
    ]
    values, shares = (torch.cat(parts) for parts in zip(*found, strict=True))
    return ReconstructionError(
        level,
        values,
        "estimate" if is_exact else "upper bound",
        num_samples,
        0 if is_exact else num_between,
        float(shares.mean()),
    )


@torch.no_grad()
def fit_observation_scale(
    hierarchy: Hierarchy, x: Tensor, *, num_samples: int = 16, generator: torch.Generator | None = None
) -> float:
    """The isotropic scale of ``p(x|z_1)`` with the smallest ``L^1`` on these data: the root mean square error.

    Args:
        hierarchy: A hierarchy in evaluation mode.
        x: Held-out data, ``(n, *shape of x)``, other than those that the error is measured on afterwards.
        num_samples: Draws of ``z_1`` for each datum.
        generator: Source of randomness.

    Returns:
        The scale σ in units of x, positive.
    """
    squares = []
    for rows, part in batches(x, max(1, _CHUNK // num_samples)):
        link = next(iter(hierarchy.rows(rows)))
        repeated = part.expand(num_samples, *part.shape)
        mean = link.down.mean(link.up.sample(repeated, generator=generator))
        squares.append((repeated - mean).square().flatten(2).mean((0, 2)))
    return max(float(torch.cat(squares).mean().sqrt()), 1e-6)


class Distances(NamedTuple):
    """Distances between data and their reconstructions, for each level from 1 up.

    Attributes:
        euclidean: ``(L, n)``, root mean square error of each reconstruction over its elements, in units of x. The error
            over all data is the root of the mean of their squares (:meth:`.Quantity.root_mean_square`).
        embedded: ``(L, n)``, ``d_c(x, x̂_l)`` of Eq. 8; ``None`` without a discriminator that has features.
    """

    euclidean: Tensor
    embedded: Tensor | None


@torch.no_grad()
def distances(hierarchy: Hierarchy, discriminator: Discriminator | None, x: Tensor) -> Distances:
    """Both distances of Fig. 3 between data and their reconstructions along the means.

    The cost is that of encoding ``L + 1`` batches like ``x``, decoding ``L`` and discriminating ``L + 1``.

    Args:
        hierarchy: A hierarchy; used in evaluation mode.
        discriminator: A discriminator over the same spaces; used in evaluation mode, without noise. ``None`` if there
            was no game.
        x: ``(n, *shape of x)``.
    """
    with evaluating(*filter(None, (hierarchy, discriminator))):
        rebuilt = [hierarchy.reconstruct(x, level) for level in range(1, len(hierarchy) + 1)]
        euclidean = torch.stack([(x - images).flatten(1).square().mean(1).sqrt() for images in rebuilt])
        if discriminator is None or not discriminator.has_features:
            return Distances(euclidean, None)
        original = _embedding(hierarchy, discriminator, x)
        embedded = [(original - _embedding(hierarchy, discriminator, images)).norm(dim=1) for images in rebuilt]
    return Distances(euclidean, torch.stack(embedded))


@torch.no_grad()
def embedded_distance(hierarchy: Hierarchy, discriminator: Discriminator, u: Tensor, v: Tensor) -> Tensor:
    """``d_c(u, v) = ‖D̄(u, û_1 … û_L) − D̄(v, v̂_1 … v̂_L)‖₂`` (Eq. 8), where hats are encodings along the means.

    Args:
        hierarchy: A hierarchy; used in evaluation mode.
        discriminator: A discriminator over the same spaces; used in evaluation mode, without noise.
        u: ``(n, *shape of x)``.
        v: ``(n, *shape of x)``.

    Returns:
        ``(n,)``, at least 0, in units of the penultimate activations.
    """
    with evaluating(hierarchy, discriminator):
        return (_embedding(hierarchy, discriminator, u) - _embedding(hierarchy, discriminator, v)).norm(dim=1)


@torch.no_grad()
def js_bound(
    hierarchy: Hierarchy,
    discriminator: Discriminator,
    x: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Quantity, ...]:
    """``D_JS ≥ log 2 − L_d/2``, in [0, log 2], from as many decoder samples as there are data.

    Any discriminator gives a lower bound on the divergence of the joints that it sees; a better one gives a higher
    bound. The bound holds in expectation: a value on finite data can be too high by its standard error, or below 0.

    Args:
        hierarchy: A hierarchy; used in evaluation mode.
        discriminator: A discriminator over the same spaces; used in evaluation mode.
        x: Data that neither was trained on, ``(n, *shape of x)``.
        generator: Source of randomness.

    Returns:
        A bound in nats for each game: one for the joints of all spaces, or one for each adjacent pair from the data up.
    """
    with evaluating(hierarchy, discriminator):
        q = hierarchy.encode(x, sample=True, generator=generator)
        p = hierarchy.sample_states(len(x), generator=generator)
        if hierarchy.context is not None:
            context = hierarchy.context.expand(len(x), *hierarchy.context.shape[1:])
            q, p = q | {CONTEXT: context}, p | {CONTEXT: context}
        return tuple(
            # The two expectations are over independent samples; pairing them does not change the mean.
            Quantity.mean(math.log(2) - 0.5 * (softplus(-game(q)) + softplus(game(p))), "lower bound", "nats")
            for game in discriminator.games
        )


@torch.no_grad()
def draws(
    hierarchy: Hierarchy, x: Tensor, level: int, count: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Several reconstructions of each datum; they differ in what ``z_l`` does not determine.

    Data are encoded along the means once, and decoded ``count`` times with a draw of every state below ``z_l``.

    Args:
        hierarchy: A hierarchy in evaluation mode.
        x: ``(n, *shape of x)``.
        level: Level l, between 1 and L.
        count: Number of draws for each datum.
        generator: Source of randomness.

    Returns:
        ``(count, n, *shape of x)``.
    """
    stack = hierarchy[:level]
    bottom, top = stack.spaces[0].name, stack.spaces[-1].name
    z = stack.encode(x)[top]
    return torch.stack([stack.decode(z, sample=True, generator=generator)[bottom] for _ in range(count)])


def _embedding(hierarchy: Hierarchy, discriminator: Discriminator, x: Tensor) -> Tensor:
    return discriminator.features(hierarchy.encode(x))


def _with_density(stack: Hierarchy, scale: float | None) -> Kernel:
    """The decoder, with a Gaussian of this scale around a deterministic ``p(x|z_1)``."""
    downs = [link.down for link in stack]
    if scale is not None:
        if not isinstance(downs[0], DeterministicKernel):
            raise ValueError(f"a scale was given, but {downs[0]} is a {type(downs[0]).__name__}: leave it out")
        downs[0] = downs[0].with_noise(scale)
    for kernel in (leaf for down in downs for leaf in down.factors):
        if not isinstance(kernel, DensityKernel):
            raise NoDensityError(
                f"{kernel} is a {type(kernel).__name__} without a density, so Eq. 5 has no value in nats; "
                "for a deterministic one give a scale, or fit one on held-out data"
            )
    return compose(*downs)


def _expected_error(encoder: LinearGaussian, decoder: LinearGaussian, x: Tensor) -> Tensor:
    """``E_{z ~ N(Wx + b, S)}[−log N(x; Vz + c, R)]``, ``(n,)``: the error at the mean plus a trace."""
    at_mean = -decoder.log_prob(x, encoder.mean(x))
    v, s = decoder.weight, encoder.covariance
    return at_mean + 0.5 * torch.linalg.solve(decoder.covariance, v @ s @ v.T).trace()


def _estimated(
    encoder: Kernel, decoder: Kernel, x: Tensor, num_samples: int, num_between: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """The errors ``(n,)`` in nats, and the effective share of the draws in between ``(n,)``."""
    values = x.expand(num_samples, *x.shape)
    z = encoder.sample(values, generator=generator)
    if not isinstance(decoder, Composite):
        return -decoder.log_prob(values, z).mean(0), torch.ones(len(x), device=x.device)
    proposing = encoder.factors[: len(decoder) - 1]
    mirrors = [kernel.target for kernel in proposing] == [kernel.source for kernel in reversed(decoder.factors[1:])]
    proposal = encoder if mirrors and all(isinstance(kernel, DensityKernel) for kernel in proposing) else None
    bound = decoder.estimate_log_prob(values, z, num_samples=num_between, proposal=proposal, generator=generator)
    return -bound.value.mean(0), bound.effective_sample_size.mean(0) / num_between
