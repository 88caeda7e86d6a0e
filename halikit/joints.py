"""Eqs. 3 and 4 as Pyro programs: one ``batch`` plate, and one site for each space, named after the space.

The programs need the density of every kernel; a kernel without one raises an error. ``h.encoder_joint(x)`` and the
other methods of a :class:`~halikit.Hierarchy` call the functions here with the kernels of the hierarchy.

Classes on top are drawn hard here, as the prior over them is, with a straight-through gradient. The relaxed draws of
the game have no density under that prior.

The parameters belong to torch, not to Pyro's parameter store. Train with
``Trace_ELBO().differentiable_loss(h.model, h.guide, x)`` and a torch optimiser: ``SVI.step`` looks for parameters in
the store, finds none there and would train nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints

from halikit.kernels import CategoricalKernel, DensityKernel, Kernel
from halikit.priors import Prior

__all__ = ["decoder_joint", "encoder_joint", "guide", "model", "with_hard_classes"]


def encoder_joint(kernels: Sequence[Kernel], x: Tensor, prior: Prior | None = None) -> dict[str, Tensor]:
    """``q(x) q(z_1|x) ∏ q(z_l|z_{l−1})`` (Eq. 3). ``x`` is an unobserved Delta site at the batch.

    Args:
        kernels: ``q(z_1|x), q(z_2|z_1), …``, all with densities.
        x: ``(n, *shape of x)``.
        prior: ``p(z_L)``; where it is over one-hot vectors, relaxed ones are drawn hard.

    Returns:
        Every state, ``x`` first.

    Raises:
        NoDensityError: If a kernel has no density.
    """
    space = kernels[0].source
    with pyro.plate("batch", len(x), dim=-1):
        states = {space.name: pyro.sample(space.name, dist.Delta(x, event_dim=space.rank))}
        return states | _encoder_sites(with_hard_classes(kernels, prior), states[space.name])


def guide(kernels: Sequence[Kernel], x: Tensor, prior: Prior | None = None) -> dict[str, Tensor]:
    """Eq. 3 given ``x``, which is not a site here: the guide of SVI and importance sampling.

    Args:
        kernels: ``q(z_1|x), q(z_2|z_1), …``, all with densities.
        x: ``(n, *shape of x)``.
        prior: ``p(z_L)``; where it is over one-hot vectors, relaxed ones are drawn hard.

    Returns:
        The latents, ``z_1`` first.

    Raises:
        NoDensityError: If a kernel has no density.
    """
    with pyro.plate("batch", len(x), dim=-1):
        return _encoder_sites(with_hard_classes(kernels, prior), x)


def decoder_joint(prior: Prior, kernels: Sequence[Kernel], n: int) -> dict[str, Tensor]:
    """``p(z_L) ∏ p(z_{l−1}|z_l) p(x|z_1)`` (Eq. 4).

    Args:
        prior: ``p(z_L)``.
        kernels: ``p(x|z_1), p(z_1|z_2), …``, all with densities.
        n: Size of the batch.

    Returns:
        Every state, ``x`` first.

    Raises:
        NoDensityError: If a kernel has no density.
    """
    with pyro.plate("batch", n, dim=-1):
        return _decoder_sites(prior, kernels, None)


def model(prior: Prior, kernels: Sequence[Kernel], x: Tensor) -> dict[str, Tensor]:
    """Eq. 4 with ``x`` observed: the model of SVI and importance sampling.

    Args:
        prior: ``p(z_L)``.
        kernels: ``p(x|z_1), p(z_1|z_2), …``, all with densities.
        x: ``(n, *shape of x)``.

    Returns:
        Every state, ``x`` first.

    Raises:
        NoDensityError: If a kernel has no density.
    """
    with pyro.plate("batch", len(x), dim=-1):
        return _decoder_sites(prior, kernels, x)


def with_hard_classes(kernels: Sequence[Kernel], prior: Prior | None) -> list[Kernel]:
    """The kernels of the encoder; the last one draws hard one-hot vectors if the prior is over these.

    Args:
        kernels: ``q(z_1|x), q(z_2|z_1), …``
        prior: ``p(z_L)``.
    """
    *below, top = kernels
    if prior is None or not isinstance(top, CategoricalKernel) or top.temperature is None:
        return [*kernels]
    return [*below, _HardClasses(top)] if prior().support is constraints.one_hot else [*kernels]


class _HardClasses(DensityKernel):
    """The classes of a kernel that relaxes them; draws are hard and pass a straight-through gradient."""

    def __init__(self, relaxed: CategoricalKernel) -> None:
        super().__init__(relaxed.source, relaxed.target)
        self.relaxed, self.takes_context, self.context = relaxed, relaxed.takes_context, relaxed.context

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        """The distribution of the class, event shape ``(K,)``."""
        logits = self.relaxed.conditioned(self.context).logits(given)
        return dist.OneHotCategoricalStraightThrough(logits=logits)


def _encoder_sites(kernels: Sequence[Kernel], state: Tensor) -> dict[str, Tensor]:
    states = {}
    for kernel in kernels:
        states[kernel.target.name] = state = pyro.sample(kernel.target.name, kernel(state))
    return states


def _decoder_sites(prior: Prior, kernels: Sequence[Kernel], x: Tensor | None) -> dict[str, Tensor]:
    state = pyro.sample(prior.space.name, prior())
    states = {prior.space.name: state}
    for kernel in reversed(kernels):
        observed = x if kernel is kernels[0] else None
        states[kernel.target.name] = state = pyro.sample(kernel.target.name, kernel(state), obs=observed)
    return dict(reversed(states.items()))
