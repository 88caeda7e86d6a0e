"""Hierarchies over finite spaces: both joints (Eqs. 3 and 4) as tables of probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from halikit.hierarchy import Hierarchy
from halikit.kernels import CategoricalKernel, Kernel
from halikit.spaces import Space

__all__ = ["FiniteJoints", "finite_joints", "random_finite_joints"]


class FiniteJoints(NamedTuple):
    """Both joints of a hierarchy over finite spaces.

    Attributes:
        q: ``(S_0, S_1, …, S_L)``, probabilities of the encoder's joint (Eq. 3).
        p: The same shape, probabilities of the decoder's joint (Eq. 4).
    """

    q: Tensor
    p: Tensor

    @classmethod
    def of(cls, data: Tensor, ups: Sequence[Tensor], downs: Sequence[Tensor], prior: Tensor) -> FiniteJoints:
        """Multiply the tables of a hierarchy.

        Args:
            data: ``q(x)``, ``(S_0,)``.
            ups: ``q(z_l|z_{l−1})``, ``(S_{l−1}, S_l)``, from level 1 up; each row adds up to 1.
            downs: ``p(z_{l−1}|z_l)``, ``(S_l, S_{l−1})``, from level 1 up; each row adds up to 1.
            prior: ``p(z_L)``, ``(S_L,)``.
        """
        q = data
        for up in ups:
            q = q.unsqueeze(-1) * up
        p = prior
        for down in reversed(downs):
            p = p.unsqueeze(-1) * down
        return cls(q, p.permute(*reversed(range(p.dim()))))


@torch.no_grad()
def finite_joints(hierarchy: Hierarchy, data: Tensor) -> FiniteJoints:
    """Both joints of a hierarchy of categorical kernels, over indices or one-hot vectors.

    Args:
        hierarchy: A hierarchy of categorical kernels that are not relaxed, with a prior over the top classes.
        data: ``q(x)``, ``(S_0,)``.

    Raises:
        TypeError: If a kernel is of another kind.
    """

    def states(space: Space, count: int) -> Tensor:
        """All states of a space, one-hot or as indices."""
        return torch.eye(count) if space.rank else torch.arange(count)

    def table(kernel: Kernel, count: int) -> Tensor:
        """The probabilities of the kernel, one row for each state of its source."""
        if not isinstance(kernel, CategoricalKernel) or kernel.temperature is not None:
            raise TypeError(f"finite spaces need categorical kernels that are not relaxed, and {kernel} is not one")
        return kernel.logits(states(kernel.source, count)).double().softmax(-1)

    counts = [len(data)]
    ups, downs = [], []
    for link in hierarchy:
        ups.append(table(link.up, counts[-1]))
        counts.append(ups[-1].shape[-1])
        downs.append(table(link.down, counts[-1]))
    prior = hierarchy.prior().log_prob(states(hierarchy.spaces[-1], counts[-1])).double().exp()
    return FiniteJoints.of(data.double(), ups, downs, prior)


def random_finite_joints(counts: Sequence[int], generator: torch.Generator) -> FiniteJoints:
    """Both joints of a random hierarchy over finite spaces; all probabilities are positive.

    Args:
        counts: Numbers of states of ``x, z_1, …, z_L``.
        generator: Source of randomness.
    """

    def table(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).softmax(-1)

    ups = [table(a, b) for a, b in pairwise(counts)]
    downs = [table(b, a) for a, b in pairwise(counts)]
    return FiniteJoints.of(table(counts[0]), ups, downs, table(counts[-1]))
