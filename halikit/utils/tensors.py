"""Small functions on tensors."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_least_single", "per_element"]


def at_least_single(x: Tensor) -> Tensor:
    """``x`` in at least single precision: means over many elements are inexact in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def per_element(loss: Tensor) -> Tensor:
    """The mean of a loss over the elements of each sample, ``(n, ...)`` to ``(n,)``."""
    return loss.reshape(len(loss), -1).mean(1)
