"""The order of the images in an epoch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["order"]


def order(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation of ``n`` images that depends only on the arguments.

    It sorts random keys of a counter-based generator (Philox), whose numbers are the same in every version of numpy. No
    global generator is used, so a resumed run has the same order as an uninterrupted one.

    Args:
        n: Number of images.
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
