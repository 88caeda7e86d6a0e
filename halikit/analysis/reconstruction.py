"""A hierarchy of reconstructions (section 3.2) and their errors: in nats (Eq. 5), Euclidean, embedded (Eq. 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from halikit.analysis.quantity import Kind, Quantity
from halikit.discriminator import Discriminator
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

# States that pass through the networks at a time, draws counted.
_CHUNK = 16_384


@dataclass(frozen=True)
class ReconstructionError:
    """``L^l(x) = E_{z_l ~ T_{z_l|x}}[−log p(x|z_l)]`` of each datum (Eq. 5).

    Attributes:
        level: l.
        values: ``(n,)``, nats.
        kind: Of each value: exact, an unbiased estimate, or a stochastic upper bound.
        num_samples: Draws of ``z_l`` per datum; 0 where none were needed.
        num_between: Draws of the states between per draw of ``z_l``; 0 where none were needed.
        effective_sample_size: Mean share of those that counts, in (0, 1]; 1 where none were needed. Near
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
        """``E_{q(x)}[L^l(x)]`` with its standard error over data and draws: an estimate, or a bound, in nats."""
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
    """``L^l(x)`` of Eq. 5 for every datum.

    What it is depends on the kernels. Linear-Gaussian ones give it exactly. Where ``p(x|z_l)`` has a density, at level
    1 above all, it is a mean over ``num_samples`` draws of ``z_l``: an unbiased estimate. Above level 1 that density
    is itself an expectation, whose logarithm can only be bounded from below; the error comes out as an upper bound,
    which falls as ``num_between`` grows.

    Args:
        hierarchy: In evaluation mode.
        x: ``(n, *shape of x)``.
        level: Between 1 and L; L by default.
        num_samples: Draws of ``z_l`` per datum.
        num_between: Draws of ``z_1 … z_{l−1}`` per draw of ``z_l``, proposed by the encoder where it has densities.
        scale: Standard deviation of the Gaussian to be put on a deterministic ``p(x|z_1)``, in units of x.
        generator: Source of randomness.

    Raises:
        NoDensityError: If a density that is needed does not exist, and none was given through ``scale``.
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
        for chunk in x.split(max(1, _CHUNK // per_datum))
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
    """The isotropic scale of ``p(x|z_1)`` that makes ``L^1`` smallest on these data: the root of the mean square.

    Args:
        hierarchy: In evaluation mode.
        x: Held-out data, ``(n, *shape of x)``; other than those that the error is then measured on.
        num_samples: Draws of ``z_1`` per datum.
        generator: Source of randomness.

    Returns:
        σ in units of x, positive.
    """
    link = next(iter(hierarchy))
    squares = []
    for chunk in x.split(max(1, _CHUNK // num_samples)):
        repeated = chunk.expand(num_samples, *chunk.shape)
        mean = link.down.mean(link.up.sample(repeated, generator=generator))
        squares.append((repeated - mean).square().flatten(2).mean((0, 2)))
    return max(float(torch.cat(squares).mean().sqrt()), 1e-6)


class Distances(NamedTuple):
    """How far reconstructions are from the data, level by level from 1 up.

    Attributes:
        euclidean: ``(L, n)``, root mean square of ``x − x̂_l`` per element.
        embedded: ``(L, n)``, ``d_c(x, x̂_l)`` of Eq. 8; ``None`` without a discriminator that has features.
    """

    euclidean: Tensor
    embedded: Tensor | None


@torch.no_grad()
def distances(hierarchy: Hierarchy, discriminator: Discriminator | None, x: Tensor) -> Distances:
    """Both distances of Fig. 3 between data and their reconstructions along the means.

    The cost is that of encoding ``L + 1``, decoding ``L`` and judging ``L + 1`` batches like ``x``.

    Args:
        hierarchy: Taken in evaluation mode.
        discriminator: Over the same spaces; taken in evaluation mode, without noise. ``None`` where there was no game.
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
    """``d_c(u, v) = ‖D̄(u, û_1 … û_L) − D̄(v, v̂_1 … v̂_L)‖₂`` (Eq. 8), the hats being encodings along the means.

    Args:
        hierarchy: Taken in evaluation mode.
        discriminator: Over the same spaces; taken in evaluation mode, without noise.
        u: ``(n, *shape of x)``.
        v: The same shape.

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

    Any discriminator gives a lower bound on the divergence of the joints that it sees, a better one a higher. In
    expectation, that is: a value on finite data can be too high, by its standard error, and below 0.

    Args:
        hierarchy: Taken in evaluation mode.
        discriminator: Over the same spaces; taken in evaluation mode.
        x: Data that neither was trained on, ``(n, *shape of x)``.
        generator: Source of randomness.

    Returns:
        One bound a game in nats: of the joints of all spaces, or of each adjacent pair from the data up.
    """
    with evaluating(hierarchy, discriminator):
        q = hierarchy.encode(x, sample=True, generator=generator)
        p = hierarchy.sample_states(len(x), generator=generator)
        return tuple(
            # The two expectations are over samples of their own, which are paired only to be counted.
            Quantity.mean(math.log(2) - 0.5 * (softplus(-game(q)) + softplus(game(p))), "lower bound", "nats")
            for game in discriminator.games
        )


@torch.no_grad()
def draws(
    hierarchy: Hierarchy, x: Tensor, level: int, count: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Several reconstructions of each datum: what ``z_l`` leaves free is what differs among them.

    Encoded along the means once, then decoded ``count`` times by sampling every state below ``z_l``.

    Args:
        hierarchy: In evaluation mode.
        x: ``(n, *shape of x)``.
        level: l, between 1 and L.
        count: Draws per datum.
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
    """The decoder; with a Gaussian of that scale where ``p(x|z_1)`` is deterministic."""
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
    """``E_{z ~ N(Wx + b, S)}[−log N(x; Vz + c, R)]``, ``(n,)``: the error at the mean and a trace."""
    at_mean = -decoder.log_prob(x, encoder.mean(x))
    v, s = decoder.weight, encoder.covariance
    return at_mean + 0.5 * torch.linalg.solve(decoder.covariance, v @ s @ v.T).trace()


def _estimated(
    encoder: Kernel, decoder: Kernel, x: Tensor, num_samples: int, num_between: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """The errors of a chunk ``(n,)``, and the share of draws between that count ``(n,)``."""
    values = x.expand(num_samples, *x.shape)
    z = encoder.sample(values, generator=generator)
    if not isinstance(decoder, Composite):
        return -decoder.log_prob(values, z).mean(0), torch.ones(len(x), device=x.device)
    proposing = encoder.factors[: len(decoder) - 1]
    mirrors = [kernel.target for kernel in proposing] == [kernel.source for kernel in reversed(decoder.factors[1:])]
    proposal = encoder if mirrors and all(isinstance(kernel, DensityKernel) for kernel in proposing) else None
    bound = decoder.estimate_log_prob(values, z, num_samples=num_between, proposal=proposal, generator=generator)
    return -bound.value.mean(0), bound.effective_sample_size.mean(0) / num_between
