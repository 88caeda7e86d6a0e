"""Semantic innovation: editing real data through what a level adds to the one below (section 6.3, Fig. 5)."""

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
    """An edit of data between two adjacent levels.

    Attributes:
        x: The edited data ``x̃``, ``(n, *shape of x)``.
        innovation: ``η = z̃_{l−1} − z̃_{l−1}^α``, ``(n, *shape of z_{l−1})``.
    """

    x: Tensor
    innovation: Tensor


@torch.no_grad()
def innovate(hierarchy: Hierarchy, x: Tensor, level: int, change: Callable[[Tensor], Tensor]) -> Innovation:
    """Edit data by changing ``z_l``, keeping what the levels below know of them (section 6.3).

    Encode ``x`` to ``ẑ_1 … ẑ_l``; change ``ẑ_l``; decode both to level ``l − 1``; subtract their difference ``η`` from
    ``ẑ_{l−1}``; carry the result down to ``x``. All along the means. A change that changes nothing gives the
    reconstruction from level ``l − 1``, for ``l = 1`` the data themselves.

    Args:
        hierarchy: In evaluation mode.
        x: ``(n, *shape of x)``.
        level: l, between 1 and L.
        change: From ``ẑ_l`` to its changed form, ``(n, *shape of z_l)``; the paper's is
            :func:`scaling`.

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
    """The paper's change: one element, or one feature map, multiplied by ``alpha``."""
    return lambda z: altered(z, entry, alpha)


def influence_on_data(hierarchy: Hierarchy, x: Tensor, level: int, alphas: tuple[float, ...] = VALUES) -> Tensor:
    """How much multiplying each entry of ``ẑ_l`` changes the data through innovation.

    Args:
        hierarchy: In evaluation mode.
        x: ``(n, *shape of x)``.
        level: l, between 1 and L.
        alphas: What entries are multiplied by.

    Returns:
        ``(entries,)``: the root mean square change per element of ``x``, over data and ``alphas``.
    """
    original = innovate(hierarchy, x, level, lambda z: z).x

    def change(entry: int, alpha: float) -> Tensor:
        edited = innovate(hierarchy, x, level, scaling(entry, alpha)).x
        return (edited - original).square().mean()

    entries = hierarchy.spaces[level].shape[0]
    return torch.stack(
        [torch.stack([change(entry, alpha) for alpha in alphas]).mean().sqrt() for entry in range(entries)]
    )
