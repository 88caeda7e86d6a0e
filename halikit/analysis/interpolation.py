"""Interpolation between data, at any level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from halikit.hierarchy import Hierarchy

__all__ = ["interpolate"]


@torch.no_grad()
def interpolate(
    hierarchy: Hierarchy,
    start: Tensor,
    end: Tensor,
    level: int,
    positions: Sequence[float],
    *,
    path: Literal["linear", "spherical"] = "linear",
    contexts: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Encode pairs of data along the means, interpolate between their ``z_l``, and decode.

    Args:
        hierarchy: A hierarchy in evaluation mode.
        start: ``(n, *shape of x)``.
        end: ``(n, *shape of x)``.
        level: Level l, between 1 and L.
        positions: Positions on the path: 0 is ``start``, 1 is ``end``; others are between or beyond.
        path: ``"linear"``, or ``"spherical"``: along the great circle of the directions, with interpolated length. The
            length of high-dimensional Gaussian latents hardly varies, and this path keeps it.
        contexts: Contexts of ``start`` and of ``end``, ``(n, K)`` floats, for kernels that take one; in between they
            are interpolated linearly.

    Returns:
        ``(n, len(positions), *shape of x)``.

    Raises:
        ValueError: If the shapes differ, or there is no such level or path.
    """
    if start.shape != end.shape:
        raise ValueError(f"both ends need one shape, got {tuple(start.shape)} and {tuple(end.shape)}")
    if path not in ("linear", "spherical"):
        raise ValueError(f"a path is 'linear' or 'spherical', got {path!r}")
    stack = hierarchy[:level]
    top, bottom = stack.spaces[-1].name, stack.spaces[0].name
    given = (None, None) if contexts is None else contexts
    a, b = (stack.encode(x, context=context)[top] for x, context in zip((start, end), given, strict=True))
    between = _linear if path == "linear" else _spherical
    images = []
    for position in positions:
        context = None if contexts is None else _linear(*contexts, position)
        images.append(stack.decode(between(a, b, position), context=context)[bottom])
    return torch.stack(images, 1)


def _linear(a: Tensor, b: Tensor, position: float) -> Tensor:
    return a + position * (b - a)


def _spherical(a: Tensor, b: Tensor, position: float) -> Tensor:
    u, v = a.flatten(1), b.flatten(1)
    lengths = u.norm(dim=1, keepdim=True), v.norm(dim=1, keepdim=True)
    u, v = (vector / length.clamp_min(1e-12) for vector, length in zip((u, v), lengths, strict=True))
    angle = (u * v).sum(1, keepdim=True).clamp(-1, 1).acos()
    # Between parallel vectors the angle is 0, and the line is used.
    sine = angle.sin()
    parallel = sine < 1e-4
    sine = sine.where(~parallel, torch.ones_like(sine))
    on_circle = (((1 - position) * angle).sin() * u + (position * angle).sin() * v) / sine
    direction = torch.where(parallel, _linear(u, v, position), on_circle)
    return (direction * _linear(*lengths, position)).reshape(a.shape)
