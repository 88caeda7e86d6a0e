"""Directions in a level from one kind of data to another, to be applied as innovations (section 6.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from halikit.analysis.features import encoded
from halikit.data import Split
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy

__all__ = ["along", "mean_direction"]


def mean_direction(hierarchy: Hierarchy, part: Split, level: int, towards: Tensor, away: Tensor) -> Tensor:
    """The difference of the means of ``z_l`` over two kinds of data.

    Args:
        hierarchy: A hierarchy in evaluation mode; given the contexts of the data, if it takes one.
        part: The data.
        level: Level l, between 1 and L.
        towards: ``(n,)`` bool, the data that the direction leads to.
        away: ``(n,)`` bool, the data that it comes from.

    Returns:
        ``(*shape of z_l)``.

    Raises:
        InputError: If one of the two kinds has no data.
    """
    space = hierarchy.spaces[level]
    sums = torch.zeros(2, *space.shape, dtype=torch.float64)
    kinds = torch.stack([towards, away]).cpu()
    counts = kinds.sum(1)
    if not counts.all():
        raise InputError("a direction leads from one kind of data to another, and one of the two kinds has no data")
    for rows, states in encoded(hierarchy[:level], part):
        z = states[space.name].double().cpu()
        sums += torch.stack([z[kind[rows]].sum(0) for kind in kinds])
    means = sums / counts.view(-1, *[1] * space.rank)
    return (means[0] - means[1]).to(hierarchy.prior.device, torch.float32)


def along(direction: Tensor, amount: float) -> Callable[[Tensor], Tensor]:
    """The change ``z ↦ z + amount · direction`` for :func:`~halikit.analysis.innovation.innovate`.

    Args:
        direction: ``(*shape of z_l)``.
        amount: Multiple of the direction.
    """
    return lambda z: z + amount * direction
