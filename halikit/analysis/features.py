"""Features of data: what the encoder makes of them at each level, for sets of any size (section 7.1)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from halikit.data import Split
from halikit.hierarchy import Hierarchy

__all__ = ["encoded", "pooled"]

# Data that are encoded at a time.
BATCH_SIZE = 500


@torch.no_grad()
def encoded(
    hierarchy: Hierarchy, part: Split, *, batch_size: int = BATCH_SIZE, start: int = 0
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Encode a part of a data set along the means, batch by batch, in order.

    Args:
        hierarchy: In evaluation mode.
        part: The data; read as they are needed.
        batch_size: Data at a time.
        start: The first to encode.

    Yields:
        The rows encoded, and every state of theirs, ``x`` first, on the hierarchy's device.
    """
    device = hierarchy.prior.device
    for first in range(start, len(part), batch_size):
        rows = slice(first, min(first + batch_size, len(part)))
        yield rows, hierarchy.encode(part.batch(torch.arange(rows.start, rows.stop)).to(device))


def pooled(z: Tensor) -> Tensor:
    """Feature maps ``(n, C, H, W)`` averaged over positions, ``(n, C)``; vectors ``(n, D)`` as they are."""
    return z.mean(tuple(range(2, z.dim()))) if z.dim() > 2 else z
