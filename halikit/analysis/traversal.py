"""Traversals: vary one entry of a latent at a time (section 6.2, Fig. 6).

An *entry* is an element of a vector latent, and a whole feature map of a spatial one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from halikit.hierarchy import Hierarchy

__all__ = ["VALUES", "How", "altered", "base_latents", "influence", "traverse"]

How = Literal["multiply", "set"]

# The values of the paper.
VALUES = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)


def altered(z: Tensor, entry: int, value: float, how: How = "multiply") -> Tensor:
    """A latent with one entry changed.

    Args:
        z: ``(n, D)`` or ``(n, C, H, W)``.
        entry: Index of the element or the feature map.
        value: Factor, or new value, of the entry.
        how: ``"multiply"``, as in the paper, or ``"set"``.

    Returns:
        A copy, of the same shape.

    Raises:
        ValueError: If there is no such entry, or ``how`` is neither of the two.
    """
    entries = z.shape[1] if z.dim() > 1 else 0
    if not 0 <= entry < entries:
        raise ValueError(f"this latent has entries 0 to {entries - 1}; there is no entry {entry}")
    if how not in ("multiply", "set"):
        raise ValueError(f"an entry is changed by 'multiply' or 'set', got {how!r}")
    z = z.clone()
    z[:, entry] = z[:, entry] * value if how == "multiply" else value
    return z


@torch.no_grad()
def base_latents(hierarchy: Hierarchy, n: int, level: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Latents to vary: ``z_L`` drawn from the prior and decoded along the means to ``z_level``.

    Args:
        hierarchy: A hierarchy in evaluation mode.
        n: Number of latents.
        level: Level, between 1 and L.
        generator: Source of randomness.

    Returns:
        ``(n, *shape of z_level)``.
    """
    top = hierarchy.prior.sample(n, generator=generator)
    return hierarchy.decode(top)[hierarchy.spaces[level].name]


@torch.no_grad()
def traverse(
    hierarchy: Hierarchy,
    z: Tensor,
    level: int,
    entries: Sequence[int],
    values: Sequence[float] = VALUES,
    *,
    how: How = "multiply",
) -> Tensor:
    """Decode a latent with one entry changed, for several entries and values, along the means.

    Args:
        hierarchy: A hierarchy in evaluation mode.
        z: States of ``z_level``, ``(n, *shape of z_level)``.
        level: Level, between 1 and L.
        entries: Entries to vary.
        values: Factors, or new values, of the entries.
        how: ``"multiply"`` or ``"set"``.

    Returns:
        ``(n, len(entries), len(values), *shape of x)``.

    Raises:
        ValueError: If there is no such entry or level.
    """
    below = hierarchy.spaces[0].name
    images = [
        torch.stack([hierarchy.decode(altered(z, entry, value, how), level)[below] for value in values], 1)
        for entry in entries
    ]
    return torch.stack(images, 1)


@torch.no_grad()
def influence(
    hierarchy: Hierarchy, z: Tensor, level: int, values: Sequence[float] = VALUES, *, how: How = "multiply"
) -> Tensor:
    """How much each entry of a latent changes the decoded data; ``argsort(descending=True)`` ranks the entries.

    Args:
        hierarchy: A hierarchy in evaluation mode.
        z: States of ``z_level``, ``(n, *shape of z_level)``.
        level: Level, between 1 and L.
        values: Factors, or new values, of the entries.
        how: ``"multiply"`` or ``"set"``.

    Returns:
        ``(entries,)``: root mean square change over the elements of ``x``, the ``z`` and the values.
    """
    below = hierarchy.spaces[0].name
    original = hierarchy.decode(z, level)[below].unsqueeze(1)
    changes = [
        (traverse(hierarchy, z, level, [entry], values, how=how)[:, 0] - original).square().mean().sqrt()
        for entry in range(z.shape[1])
    ]
    return torch.stack(changes)
