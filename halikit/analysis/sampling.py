"""Samples (Fig. 2), with the prior cut off if asked."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from halikit.analysis.inference import Inference
from halikit.hierarchy import Hierarchy

__all__ = ["sample"]

# Samples pass through the networks this many at a time.
_CHUNK = 500


@torch.no_grad()
def sample(
    hierarchy: Hierarchy,
    n: int,
    *,
    truncation: float | None = None,
    noiseless: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw data from the decoder's joint.

    Args:
        hierarchy: In evaluation mode.
        n: How many.
        truncation: Draw ``z_L`` from the prior given that no element is beyond so many standard deviations: samples
            vary less and look better. Kernels below draw as ever.
        noiseless: Give the mean of ``p(x|z_1)`` in place of a draw, as samples of an autoencoder are usually shown.
        generator: Source of randomness.

    Returns:
        ``(n, *shape of x)``.

    Raises:
        ValueError: If the truncation is not positive, or the prior is not the standard normal.
    """
    if truncation is None:
        if noiseless:
            return _down(hierarchy, hierarchy.prior.sample(n, generator=generator), generator)
        return Inference(hierarchy).sample(n, generator=generator)
    if not truncation > 0:
        raise ValueError(f"a truncation is a positive number of standard deviations, got {truncation}")
    if hierarchy.prior.distribution is not None:
        raise ValueError("only a standard normal prior can be truncated; this one is of your own")
    space, device = hierarchy.spaces[-1], hierarchy.prior.device
    uniform = torch.rand(n, *space.shape, generator=generator, device=device, dtype=torch.float64)
    bound = math.erf(truncation / math.sqrt(2))
    z = math.sqrt(2) * torch.erfinv((2 * uniform - 1) * bound)
    z = z.to(next((p.dtype for p in hierarchy.parameters()), torch.float32))
    return _down(hierarchy, z, generator) if noiseless else Inference(hierarchy).draw(z, generator=generator)


def _down(hierarchy: Hierarchy, z: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw down to ``z_1``, and take the mean from there."""
    first, *above = hierarchy
    parts = []
    for part in z.split(_CHUNK):
        for link in reversed(above):
            part = link.down.sample(part, generator=generator)
        parts.append(first.down.mean(part))
    return torch.cat(parts)
