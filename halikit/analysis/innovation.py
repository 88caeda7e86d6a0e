"""Semantic innovation: edit data by a change of one level (section 6.3, Fig. 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from halikit.analysis.traversal import VALUES, altered
from halikit.hierarchy import Hierarchy

__all__ = ["Innovation", "influence_on_data", "innovate", "scaling"]


@dataclass(frozen=True)
class Innovation:
    """Data edited by a change of one level.

    Attributes:
        x: Edited data ``x̃``, ``(n, *shape of x)``.
        innovation: Innovation ``η = z̃_{l−1} − z̃_{l−1}^α``, ``(n, *shape of z_{l−1})``.
    """

    x: Tensor
    innovation: Tensor


@torch.no_grad()
def innovate(hierarchy: Hierarchy, x: Tensor, level: int, change: Callable[[Tensor], Tensor]) -> Innovation:
    """Edit data by a change of ``z_l``, and keep the information of the levels below (section 6.3).

    Encode ``x`` to ``ẑ_1 … ẑ_l``. Change ``ẑ_l``, and decode both versions to level ``l − 1``. Subtract their
    difference ``η`` from ``ẑ_{l−1}``, and decode the result to ``x``. All of it follows the means. Without a change the
    result is the reconstruction from level ``l − 1``; for ``l = 1`` it is ``x`` itself.

    Args:
        hierarchy: A hierarchy in evaluation mode.
        x: ``(n, *shape of x)``.
        level: Level l, between 1 and L.
        change: Function from ``ẑ_l`` to the changed ``ẑ_l``, ``(n, *shape of z_l)``; :func:`scaling` in the paper.

    Raises:
        ValueError: If there is no such level.
    """
    if not 1 <= level <= len(hierarchy):
        raise ValueError(f"level must be between 1 and {len(hierarchy)}, got {level}")
    states = hierarchy.encode(x)
    below, above = (hierarchy.spaces[k].name for k in (level - 1, level))
    down = list(hierarchy)[level - 1].down
    innovation = down.mean(states[above]) - down.mean(change(states[above]))
    edited = states[below] - innovation
    if level > 1:
        edited = hierarchy.decode(edited, level - 1)[hierarchy.spaces[0].name]
    return Innovation(edited, innovation)


def scaling(entry: int, alpha: float) -> Callable[[Tensor], Tensor]:
    """The change of the paper: multiply one element or one feature map by ``alpha``."""
    return lambda z: altered(z, entry, alpha)


def influence_on_data(hierarchy: Hierarchy, x: Tensor, level: int, alphas: tuple[float, ...] = VALUES) -> Tensor:
    """How much the innovation of each entry of ``ẑ_l`` changes the data.

    Args:
        hierarchy: A hierarchy in evaluation mode.
        x: ``(n, *shape of x)``.
        level: Level l, between 1 and L.
        alphas: Factors that entries are multiplied by.

    Returns:
        ``(entries,)``: root mean square change over the elements of ``x``, the data and ``alphas``.
    """
    original = innovate(hierarchy, x, level, lambda z: z).x

    def change(entry: int, alpha: float) -> Tensor:
        edited = innovate(hierarchy, x, level, scaling(entry, alpha)).x
        return (edited - original).square().mean()

    entries = hierarchy.spaces[level].shape[0]
    return torch.stack(
        [torch.stack([change(entry, alpha) for alpha in alphas]).mean().sqrt() for entry in range(entries)]
    )
