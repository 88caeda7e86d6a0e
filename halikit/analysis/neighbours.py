"""Nearest neighbours of data in the features of a level."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from halikit.analysis.features import encoded
from halikit.data import Split
from halikit.hierarchy import Hierarchy

__all__ = ["Neighbours", "nearest_neighbours"]


class Neighbours(NamedTuple):
    """The nearest data of each query, nearest first.

    Attributes:
        rows: ``(n, k)`` int64, rows of the part searched.
        distance: ``(n, k)``, Euclidean distance in the features of the level.
    """

    rows: Tensor
    distance: Tensor


@torch.no_grad()
def nearest_neighbours(
    hierarchy: Hierarchy, x: Tensor, part: Split, level: int, k: int = 8, *, context: Tensor | None = None
) -> Neighbours:
    """Search a part of a data set, of any size, by the features of one level: the flattened means of ``z_l``.

    Args:
        hierarchy: A hierarchy in evaluation mode; given the contexts of the part, if it takes one.
        x: Queries, ``(n, *shape of x)``.
        part: The part to search.
        level: Level, between 0 and L; 0 compares the data themselves.
        k: Number of neighbours, at most ``len(part)``.
        context: The context of the queries, if kernels take one.

    Raises:
        ValueError: If the part has fewer than k data.
    """
    if not 1 <= k <= len(part):
        raise ValueError(f"there are {len(part)} data to search, so 1 to {len(part)} neighbours; got {k}")
    stack, name = hierarchy[: max(level, 1)], hierarchy.spaces[level].name
    queries = stack.encode(x, context=context)[name].flatten(1)
    distance = queries.new_empty(len(x), 0)
    nearest = torch.empty(len(x), 0, dtype=torch.int64, device=queries.device)
    for rows, states in encoded(stack, part):
        found = torch.cdist(queries, states[name].flatten(1))
        these = torch.arange(rows.start, rows.stop, device=queries.device).expand_as(found)
        distance, order = torch.cat([distance, found], 1).topk(min(k, rows.stop), largest=False)
        nearest = torch.cat([nearest, these], 1).gather(1, order)
    return Neighbours(nearest, distance)
