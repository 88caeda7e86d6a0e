"""Averaged weights: an exponential moving average of parameters and running statistics."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from halikit.hierarchy import Hierarchy

__all__ = ["Averager"]


class Averager:
    """Keeps a copy of a hierarchy at the moving average of its weights, always in evaluation mode.

    The decay warms up as ``min(decay, (1 + t) / (10 + t))``, so that early averages forget the initial weights.

    Args:
        hierarchy: The one that trains.
        decay: Share of the average kept at each step, in [0, 1); 0 follows the weights themselves.
    """

    def __init__(self, hierarchy: Hierarchy, decay: float) -> None:
        self.average = deepcopy(hierarchy).eval().requires_grad_(False)
        self.decay = decay
        self._sources = _tensors(hierarchy)
        self._targets = _tensors(self.average)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after step ``step``, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._targets[0], self._sources[0], 1 - decay)
        if self._targets[1]:
            torch._foreach_copy_(self._targets[1], self._sources[1])


def _tensors(hierarchy: Hierarchy) -> tuple[list[Tensor], list[Tensor]]:
    """Those that can be averaged, and the counters that can only be copied; the same storage as the modules'."""
    tensors = [*(p.detach() for p in hierarchy.parameters()), *hierarchy.buffers()]
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]
