"""Networks of a state and of noise at several resolutions, for implicit kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from halikit.spaces import Space

__all__ = ["NoisyDense", "NoisyMaps", "noisy_network"]

# Feature maps start at the resolution that halving leads to, as long as it stays above this.
_COARSEST = 4


def noisy_network(source: Space, target: Space, *, width: int = 64, noise: int = 16, depth: int = 2) -> nn.Module:
    """A network for :class:`~halikit.ImplicitKernel`: its attribute ``noise`` says which noise maps it takes.

    Args:
        source: Space of what is given.
        target: Space of the draws. Feature maps ``(C, H, W)`` are made from coarse to fine, with a noise map at each
            resolution; states of any other shape by dense layers, with a noise vector for each.
        width: Width of the hidden layers, or their number of channels.
        noise: Size of each noise vector. A noise map at a resolution has one channel.
        depth: Number of hidden layers, for states that are not feature maps.

    Raises:
        ValueError: If a number is not positive.
    """
    if min(width, noise, depth) < 1:
        raise ValueError(f"width, noise and depth are 1 or more, got {width}, {noise}, {depth}")
    if target.is_image:
        return NoisyMaps(source, target, width, noise)
    return NoisyDense(source, target, width, noise, depth)


class NoisyDense(nn.Module):
    """Dense layers, each of which reads a noise vector too; see :func:`noisy_network`."""

    def __init__(self, source: Space, target: Space, width: int, noise: int, depth: int) -> None:
        super().__init__()
        self.noise = ((noise,),) * depth
        sizes = [source.size, *[width] * depth]
        self.hidden = nn.ModuleList(nn.Linear(size + noise, width) for size in sizes[:-1])
        self.last = nn.Linear(width, target.size)

    def forward(self, given: Tensor, noise: list[Tensor]) -> Tensor:
        """``(n, *source.shape)`` and the noise vectors to ``(n, target.size)``."""
        state = given.reshape(len(given), math.prod(given.shape[1:])).to(self.last.weight.dtype)
        for layer, vector in zip(self.hidden, noise, strict=True):
            state = nn.functional.leaky_relu(layer(torch.cat([state, vector], 1)), 0.1)
        out: Tensor = self.last(state)
        return out


class NoisyMaps(nn.Module):
    """Feature maps from coarse to fine, with noise at each resolution; see :func:`noisy_network`.

    A source of feature maps is read at each resolution too.
    """

    def __init__(self, source: Space, target: Space, width: int, noise: int) -> None:
        super().__init__()
        _, height, across = target.shape
        sizes = [(height, across)]
        while all(size % 2 == 0 and size > _COARSEST for size in (height, across)):
            height, across = height // 2, across // 2
            sizes.insert(0, (height, across))
        self.sizes, self.reads_maps = sizes, source.is_image
        self.noise = ((noise,), *((1, *size) for size in sizes))
        self.first = nn.Linear(source.size + noise, width * math.prod(sizes[0]))
        channels = width + 1 + (source.shape[0] if source.is_image else 0)
        self.blocks = nn.ModuleList(nn.Conv2d(channels, width, 3, padding=1) for _ in sizes)
        self.last = nn.Conv2d(width, target.shape[0], 3, padding=1)

    def forward(self, given: Tensor, noise: list[Tensor]) -> Tensor:
        """``(n, *source.shape)``, a noise vector and noise maps ``(n, 1, H, W)`` to ``(n, *target.shape)``."""
        given = given.to(self.last.weight.dtype)
        flat = given.reshape(len(given), math.prod(given.shape[1:]))
        state = self.first(torch.cat([flat, noise[0]], 1)).unflatten(1, (-1, *self.sizes[0]))
        for block, size, map_ in zip(self.blocks, self.sizes, noise[1:], strict=True):
            parts = [interpolate(state, size), map_] + ([adaptive_avg_pool2d(given, size)] if self.reads_maps else [])
            state = nn.functional.leaky_relu(block(torch.cat(parts, 1)), 0.1)
        out: Tensor = self.last(state)
        return out
