"""Reconstructions from each level (section 3.2) and their errors: in nats (Eq. 5), Euclidean, embedded (Eq. 8)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from halikit.analysis.batched import batches
from halikit.analysis.importance import (
    CHUNK,
    Draws,
    Proposal,
    behind,
    bound_log_density,
    check_request,
    choose_paths,
    rows_of,
)
from halikit.analysis.quantity import Kind, Quantity
from halikit.discriminator import CONTEXT, Discriminator
from halikit.errors import InputError
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
    "observed_decoder",
    "reconstruction_error",
]


@dataclass(frozen=True)
class ReconstructionError:
    """``L^l(x) = E_{z_l ~ T_{z_l|x}}[−log p(x|z_l)]`` of each datum (Eq. 5).

    Attributes:
        level: Level l.
        values: ``(n,)``, in nats.
        kind: Whether each value is exact, an unbiased estimate, or a stochastic upper bound.
        num_samples: Draws of ``z_l`` for each datum; 0 if none were needed.
        draws: The draws of the states in between for each draw of ``z_l``; ``None`` if none were needed.
    """

    level: int
    values: Tensor
    kind: Kind
    num_samples: int
    draws: Draws | None = None

    @property
    def mean(self) -> Quantity:
        """``E_{q(x)}[L^l(x)]`` in nats, an estimate or a bound, with its standard error over data and draws."""
        return Quantity.mean_over_data(self.values, self.kind, "nats")

    @property
    def num_between(self) -> int:
        """Draws of the states in between for each draw of ``z_l``; 0 if none were needed."""
        return self.draws.number if self.draws else 0

    @property
    def effective_sample_size(self) -> float:
        """Effective number of the draws in between, at least 1, mean over data; without any, ``num_samples``."""
        return self.draws.effective_sample_size if self.draws else float(self.num_samples)

    def as_dict(self) -> dict[str, Any]:
        """The mean and the draws behind it, as JSON takes them."""
        return self.mean.as_dict() | {
            "num_samples": self.num_samples,
            "num_between": self.num_between,
            "effective_sample_size": self.effective_sample_size,
            **behind(self.draws),
        }

    def __str__(self) -> str:
        if not self.num_samples:
            return f"{self.mean}  exact for each datum"
        latents = f"{self.num_samples} draw{'s' if self.num_samples > 1 else ''} of z_{self.level}"
        return f"{self.mean}  {latents}" + (f" × {self.draws}" if self.draws else "")


@torch.no_grad()
def reconstruction_error(
    hierarchy: Hierarchy,
    x: Tensor,
    level: int | None = None,
    *,
    num_samples: int | None = None,
    num_between: int | None = None,
    most: int = 4096,
    tolerance: float = 0.5,
    proposal: Proposal = "mixture",
    scale: float | None = None,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ReconstructionError:
    """``L^l(x)`` of Eq. 5 for each datum.

    Linear-Gaussian kernels give it exactly. Where ``p(x|z_l)`` has a density, such as at level 1, it is an unbiased
    estimate: a mean over ``num_samples`` draws of ``z_l``. At other levels that density is itself an expectation over
    the states in between. The error is then an upper bound in expectation, which falls as ``num_between`` grows.

    By default the encoder and the decoder draw half of the states in between each, weighted by the density of the
    mixture of whole paths. The decoder draws all of them where one of the other kernels has no density.

    Args:
        hierarchy: A hierarchy in evaluation mode.
        x: ``(n, *shape of x)``.
        level: Level, between 1 and L; L by default.
        num_samples: Draws of ``z_l`` for each datum; by default 16 at level 1, and 2 where each needs ``num_between``.
        num_between: Draws of ``z_1 … z_{l−1}`` for each draw of ``z_l``; by default they are doubled, from 64 on, until
            the mean over data changes by less than ``tolerance``.
        most: The largest number that doubling comes to.
        tolerance: In nats.
        proposal: ``"mixture"``, ``"encoder"``, ``"decoder"``, or a kernel from x through ``z_1 … z_{l−1}``.
        scale: Standard deviation of the Gaussian around a deterministic ``p(x|z_1)``, in units of x.
        context: The context of the data, ``(n, …)`` or ``(1, …)``, if kernels take one.
        generator: Source of randomness.
        on_progress: Called with (paths drawn, paths in total at most), above level 1.

    Raises:
        NoDensityError: If a density that is needed does not exist, and ``scale`` does not give one.
        InputError: If there are no data, a number of draws is below 1, the proposal is none of the names, or ``scale``
            is given though ``p(x|z_1)`` has a density.
        ValueError: If there is no such level.
    """
    check_request(x, num_samples=num_samples, num_between=num_between, most=most)
    level = len(hierarchy) if level is None else level
    if not 1 <= level <= len(hierarchy):
        raise ValueError(f"level must be between 1 and {len(hierarchy)}, got {level}")
    stack = hierarchy.conditioned(context)[:level]
    decoder, encoder = compose(*observed_decoder(stack, scale)), stack.encoder
    if isinstance(encoder, LinearGaussian) and isinstance(decoder, LinearGaussian):
        return ReconstructionError(level, _expected_error(encoder, decoder, x), "exact", 0)
    num_samples = num_samples or (2 if isinstance(decoder, Composite) else 16)
    if not isinstance(decoder, Composite):
        values = _estimated(encoder, decoder, x, num_samples, stack.context, generator)
        return ReconstructionError(level, values, "estimate", num_samples)
    bounds = bound_log_density(
        decoder,
        x,
        _drawn(encoder, x, num_samples, stack.context, generator),
        choose_paths(decoder, encoder, proposal),
        num_draws=num_between,
        most=most,
        tolerance=tolerance,
        context=stack.context,
        generator=generator,
        on_progress=on_progress,
    )
    return ReconstructionError(level, -bounds.values.mean(0), "upper bound", num_samples, bounds.draws)


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
    for rows, part in batches(x, max(1, CHUNK // num_samples)):
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


def observed_decoder(stack: Hierarchy, scale: float | None) -> list[Kernel]:
    """The kernels of the decoder from the data up, of which ``p(x|z_1)`` has a density.

    Args:
        stack: A hierarchy.
        scale: Standard deviation of the Gaussian around a deterministic ``p(x|z_1)``, in units of x.

    Raises:
        NoDensityError: If ``p(x|z_1)`` has no density, and ``scale`` does not give one.
        InputError: If ``scale`` is given though ``p(x|z_1)`` has a density.
    """
    downs = [link.down for link in stack]
    if scale is not None:
        if not isinstance(downs[0], DeterministicKernel):
            raise InputError(f"a scale was given, but {downs[0]} is a {type(downs[0]).__name__}: leave it out")
        downs[0] = downs[0].with_noise(scale).conditioned(downs[0].context)
    kernel = downs[0].factors[-1]
    if not isinstance(kernel, DensityKernel):
        raise NoDensityError(
            f"{kernel} is a {type(kernel).__name__} without a density, so there is no value in nats; "
            "for a deterministic one give a scale, or fit one on held-out data"
        )
    return downs


def _expected_error(encoder: LinearGaussian, decoder: LinearGaussian, x: Tensor) -> Tensor:
    """``E_{z ~ N(Wx + b, S)}[−log N(x; Vz + c, R)]``, ``(n,)``: the error at the mean plus a trace."""
    at_mean = -decoder.log_prob(x, encoder.mean(x))
    v, s = decoder.weight, encoder.covariance
    return at_mean + 0.5 * torch.linalg.solve(decoder.covariance, v @ s @ v.T).trace()


def _estimated(
    encoder: Kernel,
    decoder: Kernel,
    x: Tensor,
    num_samples: int,
    context: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """``E[−log p(x|z)]`` from draws of ``z``, ``(n,)``."""
    errors = []
    for rows, part in batches(x, max(1, CHUNK // num_samples)):
        repeated, own = part.expand(num_samples, *part.shape), rows_of(context, rows)
        z = encoder.conditioned(own).sample(repeated, generator=generator)
        errors.append(-decoder.log_prob(repeated, z, context=own).mean(0))
    return torch.cat(errors)


def _drawn(encoder: Kernel, x: Tensor, count: int, context: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Several draws of ``z_l`` for each datum, ``(count, n, *shape)``."""
    return torch.cat(
        [
            encoder.conditioned(rows_of(context, rows)).sample(part.expand(count, *part.shape), generator=generator)
            for rows, part in batches(x, max(1, CHUNK // count))
        ],
        1,
    )
