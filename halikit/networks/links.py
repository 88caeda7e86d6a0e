"""The networks of one link of the ladder: from a space to the one above it, and back."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import nn

from halikit.discriminator import InputNoise
from halikit.networks.blocks import (
    COARSEST,
    LayerOptions,
    ResidualBlock,
    conv,
    convolution,
    dense,
    takes_patches,
    to_patches,
    upsample,
)
from halikit.networks.shapes import Family, halved, resolutions
from halikit.spaces import Space

__all__ = ["LinkNetworks"]


# Channels stop growing at this many times those at half of the data's resolution.
_MOST = 8
# Channels that the mixed family's convolutions of sequences and volumes stop growing at.
_MOST_CHANNELS = 256
# Fewest channels of feature maps.
_FEWEST = 16


class LinkNetworks:
    """Builds the two networks of the link between two spaces.

    Args:
        x: Space of the data.
        lower: The lower space of the link.
        upper: The upper one.
        family: Family of networks.
        hidden: Channels of feature maps at half of the data's resolution (conv family); they double with each halving.
        depth: Hidden layers of a dense network; convolutions at each resolution (conv family).
        units: Units of dense layers.
        slope: Negative slope of the leaky ReLUs.
        noise: Standard deviation of the noise on a latent that the encoder's network reads in training.
    """

    def __init__(
        self,
        x: Space,
        lower: Space,
        upper: Space,
        *,
        family: Family,
        hidden: int,
        depth: int,
        units: int,
        slope: float,
        noise: float,
    ) -> None:
        self.x, self.lower, self.upper = x, lower, upper
        self.noise = noise
        self.options = LayerOptions("batch", 0.0, slope)
        self.hidden, self.units = hidden, units
        self.axes = lower.rank - 1
        self.is_data = lower.name == x.name
        self.is_dense = family != "conv" or not lower.is_maps
        self.is_strided = family == "mixed" and lower.is_maps
        # One hidden layer is not enough between vectors.
        self.dense_layers = max(2, depth) if family == "conv" else depth
        self.blocks = depth - 1

    def up(self) -> nn.Sequential:
        """The network from ``lower`` to means and raw scales on ``upper``."""
        if self.is_strided:
            layers = self._strided()
        elif self.is_dense:
            layers = self._dense(self.lower.size, 2 * self.upper.size)
        else:
            layers = self._descending()
        return layers if self.is_data or not self.noise else nn.Sequential(InputNoise(self.noise), *layers)

    def down(self, outputs: int) -> nn.Sequential:
        """The network from ``upper`` to ``outputs`` tensors on ``lower``."""
        if self.is_dense:
            return nn.Sequential(self._dense(self.upper.size, outputs * self.lower.size), *self._shaped(outputs))
        return self._ascending(outputs)

    def _shaped(self, outputs: int) -> list[nn.Module]:
        lower = self.lower
        return [nn.Unflatten(1, (outputs * lower.shape[0], *lower.shape[1:]))] if lower.is_maps else []

    def _dense(self, inputs: int, outputs: int) -> nn.Sequential:
        sizes = [inputs, *[self.units] * self.dense_layers]
        hidden = [dense(a, b, self.options) for a, b in pairwise(sizes)]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], outputs))

    def _strided(self) -> nn.Sequential:
        """One strided convolution for each halving down to the coarsest maps, which is fast on a CPU."""
        inputs, size = self.lower.shape[0], self.lower.shape[1:]
        channels, kernel = max(1, self.units // 16), 5
        layers: list[nn.Module] = []
        while not layers or min(size) > COARSEST:
            layers.append(conv(inputs, channels, kernel, 2, self.options, axes=self.axes))
            inputs, channels, kernel = channels, self._doubled(channels), 3
            size = halved(size)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * math.prod(size), 2 * self.upper.size))

    def _doubled(self, channels: int) -> int:
        return 2 * channels if self.axes == 2 else max(channels, min(2 * channels, _MOST_CHANNELS))

    def _resolutions(self) -> list[tuple[int, ...]]:
        """Resolutions from ``lower`` down to ``upper``, or down to the coarsest maps if ``upper`` is a vector."""
        return resolutions(self.lower.shape[1:], self.upper.shape[1:] or None)

    def _channels(self, size: tuple[int, ...]) -> int:
        """Channels of feature maps at a resolution."""
        halvings = round(math.log2(self.x.shape[1] / size[0]))
        return max(min(_FEWEST, self.hidden), min(round(self.hidden * 2.0 ** (halvings - 1)), _MOST * self.hidden))

    def _residual(self, channels: int) -> list[nn.Module]:
        return [ResidualBlock(channels, self.options, axes=self.axes) for _ in range(self.blocks)]

    def _descending(self) -> nn.Sequential:
        axes, sizes = self.axes, self._resolutions()
        inputs = self.lower.shape[0]
        layers: list[nn.Module] = []
        options = self.options
        if self.is_data:
            options = options._replace(norm=None)
            if takes_patches(self.lower.shape, sizes[-1]):
                layers.append(to_patches(axes))
                inputs, sizes = inputs * 2**axes, sizes[1:]
        channels = self._channels(sizes[0])
        layers += [conv(inputs, channels, 3, 1, options, axes=axes), *self._residual(channels)]
        for size in sizes[1:]:
            inputs, channels = channels, self._channels(size)
            layers += [conv(inputs, channels, 3, 2, self.options, axes=axes), *self._residual(channels)]
        if self.upper.is_maps:
            layers.append(convolution(channels, 2 * self.upper.shape[0], 3, padding=1, axes=axes))
        else:
            layers += [nn.Flatten(), dense(channels * math.prod(sizes[-1]), self.units, self.options)]
            layers.append(nn.Linear(self.units, 2 * self.upper.size))
        return nn.Sequential(*layers)

    def _ascending(self, outputs: int) -> nn.Sequential:
        """Linear upsampling up to the full resolution: patches would leave a checkerboard in images."""
        axes, (*finer, coarsest) = self.axes, self._resolutions()
        channels = self._channels(coarsest)
        layers: list[nn.Module] = []
        if self.upper.is_maps:
            layers.append(conv(self.upper.shape[0], channels, 3, 1, self.options, axes=axes))
        else:
            layers.append(dense(self.upper.size, channels * math.prod(coarsest), self.options))
            layers.append(nn.Unflatten(1, (channels, *coarsest)))
        layers += self._residual(channels)
        for size in reversed(finer):
            inputs, channels = channels, self._channels(size)
            layers += [upsample(axes, size), conv(inputs, channels, 3, 1, self.options, axes=axes)]
            if not (self.is_data and size == self.lower.shape[1:]):  # the full resolution would cost the most
                layers += self._residual(channels)
        layers.append(convolution(channels, outputs * self.lower.shape[0], 3, padding=1, axes=axes))
        return nn.Sequential(*layers)
