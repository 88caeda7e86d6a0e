"""The order in which an epoch goes through the data."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["order"]


def order(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation of ``n`` images that depends on nothing but its arguments.

    It sorts keys of a counter-based generator (Philox), whose stream numpy keeps from version to version; no
    global generator is read or advanced, so a resumed run goes through the data as an unbroken one does.

    Args:
        n: How many images there are.
        seed: Seed of the run, any integer.
        epoch: Number of the epoch, from 0.

    Returns:
        ``(n,)`` int64 on the CPU: each of 0 … n − 1 once.

    Example:
        >>> order(5, seed=0, epoch=0).sort().values.tolist()
        [0, 1, 2, 3, 4]
        >>> torch.equal(order(1000, seed=0, epoch=1), order(1000, seed=1, epoch=0))
        False
    """
    keys = np.random.Philox(np.random.SeedSequence((seed % 2**64, epoch % 2**64))).random_raw(n)
    return torch.from_numpy(np.argsort(keys, kind="stable").astype(np.int64))
