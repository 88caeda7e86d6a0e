"""Functions of any number of data, a batch at a time, so that memory is bounded by the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from halikit.data import Split
from halikit.hierarchy import Hierarchy

__all__ = ["at_random", "batches", "in_batches", "sampled_parts", "sizes"]


def sizes(n: int, size: int) -> Iterator[int]:
    """The sizes of the batches of ``n`` data: ``size``, and the rest in the last one."""
    for first in range(0, n, size):
        yield min(size, n - first)


def batches(data: Tensor | Split, size: int, *, device: torch.device | None = None) -> Iterator[tuple[slice, Tensor]]:
    """The data in order, in batches.

    Args:
        data: ``(n, *shape)``, or a part of a data set, which is read batch by batch.
        size: Size of a batch; the last one may be smaller.
        device: Where batches go; by default they stay where the data are.

    Yields:
        The rows, and their data ``(size, *shape)``.
    """
    first = 0
    for n in sizes(len(data), size):
        rows = slice(first, first + n)
        batch = data[rows] if isinstance(data, Tensor) else data.batch(torch.arange(first, first + n))
        yield rows, batch if device is None else batch.to(device)
        first += n


def at_random(hierarchy: Hierarchy, n: int) -> Hierarchy:
    """The hierarchy given ``n`` of its contexts, drawn with replacement by torch's global generator."""
    context = hierarchy.context
    if context is None or len(context) == 1:
        return hierarchy
    return hierarchy.rows(torch.randint(len(context), (n,), device=context.device))


def sampled_parts(hierarchy: Hierarchy, n: int, size: int) -> Iterator[tuple[int, Hierarchy]]:
    """The batches in which ``n`` samples are drawn: the size of each, and the hierarchy given the context of its rows.

    Args:
        hierarchy: A hierarchy; given a context of n rows or of one, if it takes a context.
        n: Number of samples.
        size: Size of a batch; the last one may be smaller.
    """
    first = 0
    for number in sizes(n, size):
        yield number, hierarchy.rows(slice(first, first + number))
        first += number


def in_batches(
    function: Callable[[Tensor], Tensor], data: Tensor | Split, size: int, *, device: torch.device | None = None
) -> Tensor:
    """A function of data, applied batch by batch.

    Args:
        function: From ``(size, *shape)`` to ``(size, …)``, each row from the same row.
        data: ``(n, *shape)``, or a part of a data set.
        size: Size of a batch.
        device: Where the function takes the data; by default they stay where they are.

    Returns:
        ``(n, …)``, where the function returns it.
    """
    return torch.cat([function(x) for _, x in batches(data, size, device=device)])
