"""Eqs. 3 and 4 as Pyro programs: one ``batch`` plate, one site per space, named after it.

They hold for hierarchies whose kernels all have densities; a kernel without one says so. Parameters are torch's own,
so train with ``Trace_ELBO().differentiable_loss(h.model, h.guide, x)`` and a torch optimiser: ``SVI.step`` looks for
parameters in Pyro's store, finds none there and would train nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro
import pyro.distributions as dist
from torch import Tensor

if TYPE_CHECKING:
    from halikit.hierarchy import Hierarchy

__all__ = ["decoder_joint", "encoder_joint", "guide", "model"]


def encoder_joint(hierarchy: Hierarchy, x: Tensor) -> dict[str, Tensor]:
    """``q(x) q(z_1|x) ∏ q(z_l|z_{l−1})`` (Eq. 3), ``x`` an unobserved Delta site at the batch.

    Args:
        hierarchy: All kernels with densities.
        x: ``(n, *shape of x)``.

    Returns:
        Every state, ``x`` first.

    Raises:
        NoDensityError: At a kernel without a density.
    """
    space = hierarchy.spaces[0]
    with pyro.plate("batch", len(x), dim=-1):
        states = {space.name: pyro.sample(space.name, dist.Delta(x, event_dim=space.rank))}
        return states | _ascend(hierarchy, states[space.name])


def decoder_joint(hierarchy: Hierarchy, n: int) -> dict[str, Tensor]:
    """``p(z_L) ∏ p(z_{l−1}|z_l) p(x|z_1)`` (Eq. 4).

    Args:
        hierarchy: All kernels with densities.
        n: Size of the batch.

    Returns:
        Every state, ``x`` first.

    Raises:
        NoDensityError: At a kernel without a density.
    """
    with pyro.plate("batch", n, dim=-1):
        return _descend(hierarchy, None)


def model(hierarchy: Hierarchy, x: Tensor) -> dict[str, Tensor]:
    """Eq. 4 with ``x`` observed: the model of SVI and importance sampling.

    Args:
        hierarchy: All kernels with densities.
        x: ``(n, *shape of x)``.

    Returns:
        Every state, ``x`` first.

    Raises:
        NoDensityError: At a kernel without a density.
    """
    with pyro.plate("batch", len(x), dim=-1):
        return _descend(hierarchy, x)


def guide(hierarchy: Hierarchy, x: Tensor) -> dict[str, Tensor]:
    """Eq. 3 given ``x``, which is no site here: the guide of SVI and importance sampling.

    Args:
        hierarchy: All kernels with densities.
        x: ``(n, *shape of x)``.

    Returns:
        The latents, ``z_1`` first.

    Raises:
        NoDensityError: At a kernel without a density.
    """
    with pyro.plate("batch", len(x), dim=-1):
        return _ascend(hierarchy, x)


def _ascend(hierarchy: Hierarchy, state: Tensor) -> dict[str, Tensor]:
    states = {}
    for link in hierarchy:
        states[link.up.target.name] = state = pyro.sample(link.up.target.name, link.up(state))
    return states


def _descend(hierarchy: Hierarchy, x: Tensor | None) -> dict[str, Tensor]:
    top = hierarchy.spaces[-1]
    states = {top.name: pyro.sample(top.name, hierarchy.prior())}
    for link in reversed(list(hierarchy)):
        target = link.down.target
        observed = x if target == hierarchy.spaces[0] else None
        states[target.name] = pyro.sample(target.name, link.down(states[link.down.source.name]), obs=observed)
    return {space.name: states[space.name] for space in hierarchy.spaces}
