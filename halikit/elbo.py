"""The evidence lower bound, by which a variational autoencoder trains: the baseline on the hierarchy's own kernels.

The paper compares with it in sections 5.2 and 7.1; the bound is Kingma and Welling's (2014).

Densities are defined in evaluation mode. While it trains, batch normalisation within the networks takes the statistics
of the batch, as is usual for autoencoders, so the loss of a training step is that of the networks as they stand under
these statistics; a bound in the strict sense is what :func:`negative_elbo` gives in evaluation mode. A gauge would
couple the samples in the density itself, raises in training mode, and has nothing to do here: the divergences already
fix location and scale of every latent.
"""

from __future__ import annotations

from pyro.infer import Trace_ELBO
from torch import Tensor

from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.kernels import DensityKernel

__all__ = ["check_trains_by_elbo", "negative_elbo"]


def negative_elbo(hierarchy: Hierarchy, x: Tensor) -> Tensor:
    """``−E_q [log p(x, z_1 … z_L) − log q(z_1 … z_L|x)]`` per sample, in nats, ``()``; differentiable.

    An estimate, with one draw of the latents per sample, of an upper bound on ``−log p(x)``. It is a density's
    logarithm, in the units of ``x`` (images lie in [−1, 1]), and may well be negative.

    Args:
        hierarchy: All kernels with densities.
        x: ``(n, *shape of x)``.

    Raises:
        NoDensityError: At a kernel without a density.
    """
    # Every kernel reparametrises, so the surrogate is the loss itself.
    return Trace_ELBO().differentiable_loss(hierarchy.model, hierarchy.guide, x) / len(x)


def check_trains_by_elbo(hierarchy: Hierarchy) -> None:
    """Refuse kernels that have no density while they train.

    Raises:
        InputError: Naming the kernels and the settings that would give them one.
    """
    kernels = [kernel for link in hierarchy for kernel in (link.up, link.down)]
    without = [str(kernel) for kernel in kernels if not isinstance(kernel, DensityKernel)]
    gauged = [str(kernel) for kernel in kernels if getattr(kernel, "gauge", None)]
    wrong = []
    if without:
        wrong.append(f"{', '.join(without)} has none: set model.observation_scale to a number or to 'fitted'")
    if gauged:
        wrong.append(f"{', '.join(gauged)} has a gauge: set model.gauge and model.max_scale to none")
    if wrong:
        raise InputError("the evidence lower bound needs densities in training\n" + "\n".join(wrong))
