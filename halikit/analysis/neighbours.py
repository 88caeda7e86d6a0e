"""Which data a level takes for alike."""

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
        rows: ``(n, k)`` int64, of the part searched.
        distance: ``(n, k)``, Euclidean, in the level's features.
    """

    rows: Tensor
    distance: Tensor


@torch.no_grad()
def nearest_neighbours(hierarchy: Hierarchy, x: Tensor, part: Split, level: int, k: int = 8) -> Neighbours:
    """Search a part of a data set, of any size, in the features of one level: the means of ``z_l``, flattened.

    Args:
        hierarchy: In evaluation mode.
        x: Queries, ``(n, *shape of x)``.
        part: What to search.
        level: Between 0 and L; 0 compares the data themselves.
        k: How many to find, at most ``len(part)``.

    Raises:
        ValueError: If there are fewer data than that.
    """
    if not 1 <= k <= len(part):
        raise ValueError(f"there are {len(part)} data to search, so 1 to {len(part)} neighbours; got {k}")
    stack, name = hierarchy[: max(level, 1)], hierarchy.spaces[level].name
    queries = stack.encode(x)[name].flatten(1)
    distance = queries.new_empty(len(x), 0)
    nearest = torch.empty(len(x), 0, dtype=torch.int64, device=queries.device)
    for rows, states in encoded(stack, part):
        found = torch.cdist(queries, states[name].flatten(1))
        these = torch.arange(rows.start, rows.stop, device=queries.device).expand_as(found)
        distance, order = torch.cat([distance, found], 1).topk(min(k, rows.stop), largest=False)
        nearest = torch.cat([nearest, these], 1).gather(1, order)
    return Neighbours(nearest, distance)
