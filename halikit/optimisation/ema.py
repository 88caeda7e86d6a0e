"""Averaged weights: the exponential moving average of parameters and running statistics."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from halikit.hierarchy import Hierarchy

__all__ = ["Averager"]


class Averager:
    """A copy of a hierarchy with the exponential moving average of its weights, always in evaluation mode.

    At step ``t`` the decay is ``min(decay, (1 + t) / (10 + t))``, so that the average soon forgets the initial weights.

    Args:
        hierarchy: The hierarchy that is trained.
        decay: Decay of the average, in [0, 1); at 0 the average equals the weights.

    Attributes:
        average: The copy.
    """

    def __init__(self, hierarchy: Hierarchy, decay: float) -> None:
        self.average = deepcopy(hierarchy).eval().requires_grad_(False)
        self.decay = decay
        self._sources = _tensors(hierarchy)
        self._targets = _tensors(self.average)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after step ``step``, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._targets[0], self._sources[0], 1 - decay)
        if self._targets[1]:
            torch._foreach_copy_(self._targets[1], self._sources[1])


def _tensors(hierarchy: Hierarchy) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and buffers, in their own memory: those to average, and counters, which can only be copied."""
    tensors = [*(p.detach() for p in hierarchy.parameters()), *hierarchy.buffers()]
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]
