"""Search for the latents that explain the known part of data, by gradient through the decoder.

An encoder was trained on whole data, and its latents of data with missing parts are poor. The search starts from them.
After that, only the decoder and the known part count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from halikit.hierarchy import Hierarchy
from halikit.kernels import DensityKernel, ImplicitKernel, Kernel, Moments
from halikit.kernels.gauged import GaugedKernel
from halikit.priors import Prior
from halikit.utils.modes import evaluating

__all__ = ["explain"]

# Gives the noise of the next latent on the way down, of this shape.
_Noise = Callable[[torch.Size], Tensor]

# Adam: the rate at the first step, in standard deviations of the noise. It falls linearly to zero.
_RATE, _BETAS = 0.1, (0.9, 0.99)
# The least standard deviation of known elements, so that a perfect fit does not divide by zero.
_LEAST_SCALE = 1e-3
# Draws from a prior that does not know its mean and standard deviation.
_PRIOR_DRAWS = 1000


def explain(
    hierarchy: Hierarchy,
    x: Tensor,
    known: Tensor,
    *,
    draw: bool = True,
    steps: int = 50,
    scale: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Data that the decoder makes from latents that explain the known elements.

    Every latent is written as ``mean + standard deviation · noise`` of its decoder kernel or prior. The search
    minimises ``½ ‖ε − η‖² + ‖f(ε) − x − σ ξ‖² / 2σ²`` over the noise ``ε`` of all levels. ``f(ε)`` is the decoder's
    mean of x, and the second norm is over the known elements. With ``η = 0`` and ``ξ = 0`` the result is the most
    probable noise. With standard normal ``η`` and ``ξ`` it is a draw from the posterior of ``ε`` given the known
    elements: exact where ``f`` is linear and the search converges (Papandreou and Yuille 2010), and an approximation
    elsewhere.

    Priors and kernels count as independent Gaussians with their mean and standard deviation; implicit kernels have
    noise of their own. Kernels with neither follow their mean. A discrete ``z_L`` stays as the encoder gives it.

    Args:
        hierarchy: A hierarchy; used in evaluation mode.
        x: ``(n, *shape of x)``, with a first guess in place of the elements that are not known.
        known: Bool, the shape of ``x``, True where elements are known.
        draw: Whether to draw from the posterior; otherwise the most probable noise is taken.
        steps: Number of steps of Adam.
        scale: σ, the standard deviation of x around the decoder's mean, in units of x; by default, for each datum, the
            root mean square error of its reconstruction from z_1 over the known elements.
        generator: Random generator; torch's global one by default.

    Returns:
        ``(n, *shape of x)``, the decoder's mean, also in place of known elements.
    """

    def fresh(shape: torch.Size) -> Tensor:
        return x.new_empty(shape).normal_(generator=generator) if draw else x.new_zeros(shape)

    with evaluating(hierarchy), torch.no_grad():
        sigma = _errors(hierarchy, x, known) if scale is None else x.new_tensor(scale)
        target = x + sigma * fresh(x.shape)
        z = hierarchy.encode(x, sample=draw, generator=generator)[hierarchy.spaces[-1].name]
        prior = _moments_of_prior(hierarchy.prior)
        centres: list[Tensor] = []

        def recorded(shape: torch.Size) -> Tensor:
            centres.append(fresh(shape))
            return centres[-1]

        # The noise of z_L starts at the encoder's latent, and that of the levels below at its centre.
        noise = []
        if prior is not None:
            recorded(z.shape)
            noise.append((z - prior.mean) / prior.scale)
        _decode(hierarchy, z, recorded)
        noise += [centre.clone() for centre in centres[len(noise) :]]

        def decoded() -> Tensor:
            """The decoder's mean of x for the present noise, ``(n, *shape of x)``."""
            given = iter(noise)
            top = z if prior is None else prior.mean + prior.scale * next(given)
            return _decode(hierarchy, top, lambda _: next(given))

        def energy() -> Tensor:
            """What the search minimises, summed over the data, ``()``."""
            misfit = torch.where(known, (decoded() - target) / sigma, 0)
            distances = [misfit, *(a - b for a, b in zip(noise, centres, strict=True))]
            return 0.5 * torch.stack([distance.square().sum() for distance in distances]).sum()

        _minimise(energy, noise, steps)
        return decoded()


def _errors(hierarchy: Hierarchy, x: Tensor, known: Tensor) -> Tensor:
    """For each datum the error over its known elements of its reconstruction from z_1, broadcasts to ``x``."""
    squares = (hierarchy.reconstruct(x, 1) - x).square() * known
    share = known.flatten(1).sum(1).clamp(min=1)
    errors = (squares.flatten(1).sum(1) / share).sqrt().clamp(min=_LEAST_SCALE)
    return errors.view(-1, *[1] * (x.dim() - 1))


def _decode(hierarchy: Hierarchy, z: Tensor, noise: _Noise) -> Tensor:
    """The decoder's mean of x for ``z_L`` and the noise of all levels below."""
    first, *above = hierarchy
    for link in reversed(above):
        z = _state(link.down, z, noise)
    return first.down.mean(z)


def _state(kernel: Kernel, given: Tensor, noise: _Noise) -> Tensor:
    """The state that a kernel makes with this noise."""
    if isinstance(kernel, ImplicitKernel):
        return kernel.at(given, [noise(torch.Size((len(given), *shape))) for shape in kernel.noise])
    if isinstance(kernel, GaugedKernel) and isinstance(kernel.kernel, ImplicitKernel):
        state = _state(kernel.kernel.conditioned(kernel.context), given, noise)
        return kernel.map.by_draws(state)(state)
    moments = _moments(kernel(given)) if isinstance(kernel, DensityKernel) else None
    return kernel.mean(given) if moments is None else moments.mean + moments.scale * noise(moments.mean.shape)


def _moments(distribution: Any) -> Moments | None:
    """Mean and standard deviation of a distribution of real elements; ``None`` where it does not know them."""
    if not _is_real(distribution):
        return None
    try:
        return Moments(distribution.mean, distribution.stddev)
    except NotImplementedError:
        return None


def _moments_of_prior(prior: Prior) -> Moments | None:
    """Mean and standard deviation of ``z_L``, from draws where the prior does not know them; ``None`` if discrete."""
    distribution = prior()
    if not _is_real(distribution):
        return None
    known = _moments(distribution)
    if known is not None:
        return known
    draws = prior.sample(_PRIOR_DRAWS)
    return Moments(draws.mean(0), draws.std(0))


def _is_real(distribution: Any) -> bool:
    """Whether the elements of the states are real numbers, perhaps between bounds."""
    support = distribution.support
    support = getattr(support, "base_constraint", support)
    return support is constraints.real or isinstance(support, constraints.interval)


def _minimise(energy: Callable[[], Tensor], variables: list[Tensor], steps: int) -> None:
    """Move the variables in place. The steps of one datum do not depend on the others, if the energy is a sum."""
    if not variables:
        return
    optimiser = torch.optim.Adam(variables, lr=_RATE, betas=_BETAS)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = _RATE * (1 - step / steps)
        with torch.enable_grad():
            for variable in variables:
                variable.requires_grad_()
            # Gradients of these alone: those of the parameters stay as they are.
            gradients = torch.autograd.grad(energy(), variables, allow_unused=True)
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.grad = gradient
        optimiser.step()
