"""The evidence lower bound (Kingma and Welling 2014), which trains the kernels of a hierarchy as an autoencoder.

The paper compares with such variational autoencoders in sections 5.2 and 7.1.

:func:`negative_elbo` is a bound only in evaluation mode. In training mode the networks' batch normalisation uses the
statistics of the batch, as is usual for autoencoders, so the density of a sample depends on the other samples.

Kernels with a gauge cannot be trained in this way: they have no density in training mode. They need no gauge either,
because the divergences fix the location and the scale of every latent.
"""

from __future__ import annotations

from typing import Any

from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.kernels import DensityKernel
from halikit.priors import Uniform

__all__ = ["check_trains_by_elbo", "negative_elbo"]


def negative_elbo(hierarchy: Hierarchy, x: Tensor) -> Tensor:
    """``−E_q [log p(x, z_1 … z_L) − log q(z_1 … z_L|x)]`` per sample, in nats, ``()``; differentiable.

    An estimate of an upper bound on ``−log p(x)``, from one sample of the latents for each ``x``. Densities are over
    ``x`` in its own units (images are in [−1, 1]), so the value may be negative.

    Args:
        hierarchy: A hierarchy in which every kernel has a density.
        x: ``(n, *shape of x)``.

    Raises:
        NoDensityError: If a kernel has no density.
    """
    guide: Any = poutine.trace(hierarchy.guide).get_trace(x)
    if not all(guide.nodes[space.name]["fn"].has_rsample for space in hierarchy.spaces[1:]):
        # Where samples are not reparametrised, as hard bits are not, Pyro adds the gradient of the score function.
        return Trace_ELBO().differentiable_loss(hierarchy.model, hierarchy.guide, x) / len(x)
    # Pyro's loss reads values of tensors: the host would wait for the device, and a compiled step has no values.
    model: Any = poutine.trace(poutine.replay(hierarchy.model, guide)).get_trace(x)
    bound: Tensor = (guide.log_prob_sum() - model.log_prob_sum()) / len(x)
    return bound


def check_trains_by_elbo(hierarchy: Hierarchy) -> None:
    """Check that every kernel has a density in training mode.

    Raises:
        InputError: If one has none; the message names the kernels and the settings that give them a density.
    """
    kernels = [kernel for link in hierarchy for kernel in (link.up, link.down)]
    without = [str(kernel) for kernel in kernels if not isinstance(kernel, DensityKernel)]
    gauged = [str(kernel) for kernel in kernels if getattr(kernel, "gauge", None)]
    wrong = []
    if without:
        wrong.append(f"{', '.join(without)} has none: set model.observation_scale to a number or to 'fitted'")
    if gauged:
        wrong.append(f"{', '.join(gauged)} has a gauge: set model.gauge and model.max_scale to none")
    prior = hierarchy.prior
    if isinstance(prior, Uniform) and prior.space.support in (None, "real"):
        wrong.append(f"the uniform prior on {prior.space} has none outside its interval: set model.prior to another")
    if wrong:
        raise InputError("the evidence lower bound needs densities in training\n" + "\n".join(wrong))
