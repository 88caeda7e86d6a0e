"""Small functions on tensors."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_least_single", "evenly_spaced", "per_element"]


def at_least_single(x: Tensor) -> Tensor:
    """``x`` in at least single precision: means over many elements are inexact in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def evenly_spaced(n: int, total: int) -> Tensor:
    """Indices of ``n`` evenly spaced rows of ``total``, or of all: the first rows may be of one class."""
    n = min(n, total)
    return torch.arange(n) * total // max(1, n)


def per_element(loss: Tensor) -> Tensor:
    """The mean of a loss over the elements of each sample, ``(n, ...)`` to ``(n,)``."""
    return loss.reshape(len(loss), -1).mean(1)
