"""Samples of the decoder (Fig. 2), with a truncated prior if asked."""

from __future__ import annotations

import torch
from torch import Tensor

from halikit.analysis.batched import batches
from halikit.analysis.inference import Inference
from halikit.hierarchy import Hierarchy

__all__ = ["sample"]

# Samples that pass through the networks at a time.
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
        hierarchy: A hierarchy in evaluation mode; given n contexts or one, if it takes a context.
        n: Number of samples.
        truncation: Truncate the noise of the prior at this many standard deviations in each element: that of each
            component of a mixture, and what a flow starts from. Samples vary less and look better. The kernels below
            draw as usual.
        noiseless: Take the mean of ``p(x|z_1)`` instead of a draw, as samples of an autoencoder are usually shown.
        generator: Source of randomness.

    Returns:
        ``(n, *shape of x)``.

    Raises:
        ValueError: If the truncation is not positive, or the prior cannot be truncated.
    """
    if truncation is None:
        if noiseless:
            return _down(hierarchy, hierarchy.prior.sample(n, generator=generator), generator)
        return Inference(hierarchy).sample(n, generator=generator)
    z = hierarchy.prior.truncated_sample(n, truncation, generator=generator)
    return _down(hierarchy, z, generator) if noiseless else Inference(hierarchy).draw(z, generator=generator)


def _down(hierarchy: Hierarchy, z: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw down to ``z_1``, and take the mean of ``x`` from there."""
    found = []
    for rows, state in batches(z, _CHUNK):
        first, *above = hierarchy.rows(rows)
        for link in reversed(above):
            state = link.down.sample(state, generator=generator)
        found.append(first.down.mean(state))
    return torch.cat(found)
