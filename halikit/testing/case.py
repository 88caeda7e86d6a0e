"""A kernel under test and the states to test it on (section 3.1)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from halikit.kernels import DensityKernel, Kernel
from halikit.spaces import Space

__all__ = ["DRAWS", "ERRORS", "Case", "prepared"]

# A statistical check fails at this many standard errors. The seed is fixed, so a kernel always passes or always fails.
ERRORS = 5.0
DRAWS = 4000
# Rows of what is given if the caller gives none.
_ROWS = 16


@dataclass(frozen=True)
class Case:
    """A kernel under test.

    Attributes:
        kernel: A copy in evaluation mode, bound to one row of the context if it takes one.
        given: ``(n, *source.shape)``.
        context: ``(n, …)``, or ``None``.
    """

    kernel: Kernel
    given: Tensor
    context: Tensor | None

    def rows(self, *batch: int) -> Tensor:
        """What is given with other batch dimensions."""
        rows = math.prod(batch)
        repeated = self.given.repeat(rows // len(self.given) + 1, *[1] * self.kernel.source.rank)
        return repeated[:rows].reshape((*batch, *self.kernel.source.shape))

    def same(self, n: int, row: int = 0) -> Tensor:
        """One row of what is given, ``n`` times."""
        return self.given[row].expand(n, *self.kernel.source.shape)

    @property
    def has_density(self) -> bool:
        """Whether the kernel has a density."""
        return isinstance(self.kernel, DensityKernel)

    def copy(self) -> Kernel:
        """Another copy of the kernel, whose parameters and gradients may be changed."""
        return copy.deepcopy(self.kernel)


def prepared(kernel: Kernel, given: Tensor | None, context: Tensor | None) -> Case:
    """A copy of a kernel in evaluation mode, with states to test it on.

    Args:
        kernel: The kernel.
        given: ``(n, *source.shape)``; by default draws that fit the support of the source.
        context: ``(n, …)`` for a kernel that takes one.

    Raises:
        ValueError: If ``given`` or ``context`` is needed and missing, or has too few rows.
    """
    checked = copy.deepcopy(kernel).eval()
    if kernel.takes_context and kernel.context is None:
        if context is None:
            raise ValueError(f"{kernel} takes a context: give check_kernel context=, one row for each row of given=")
        checked = checked.conditioned(context[:1])
    like = next(kernel.parameters(), torch.empty(0))
    if given is None:
        given = _states(kernel.source, _ROWS if context is None else len(context), like)
    if len(given) < 2 or (context is not None and len(context) != len(given)):
        raise ValueError("check_kernel needs two rows of given= or more, and as many rows of context=")
    return Case(checked, given.detach(), context)


def _states(space: Space, n: int, like: Tensor) -> Tensor:
    """Draws that fit the support of a space, ``(n, *shape)``."""
    if space.support == "index":
        raise ValueError(f"the states of {space} are indices: give check_kernel given=, a tensor of some of them")
    normal = torch.randn(n, *space.shape, dtype=like.dtype, device=like.device)
    if space.support == "unit":
        return normal.sigmoid()
    if space.support == "bits":
        return (normal > 0).to(normal)
    if space.support == "simplex":
        return normal.softmax(-1)
    if space.support == "one_hot":
        return torch.nn.functional.one_hot(normal.argmax(-1), space.shape[-1]).to(normal)
    return normal
