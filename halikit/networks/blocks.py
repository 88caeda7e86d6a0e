"""The blocks of Table 4: a linear map, its normalisation, nonlinearity and dropout, in this order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from einops.layers.torch import Rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.parametrize import is_parametrized

from halikit.kernels.kernel import network_takes_context
from halikit.spaces import Space

__all__ = [
    "COARSEST",
    "DENSE_PIXELS",
    "Convolution",
    "DenseResidualBlock",
    "Dropout",
    "Layer",
    "LayerOptions",
    "LinearSkip",
    "Norm",
    "Reshape",
    "ResidualBlock",
    "conv",
    "convolution",
    "dense",
    "from_patches",
    "initialise",
    "linear_skips",
    "normalised",
    "start_at_zero",
    "takes_patches",
    "to_patches",
    "upsample",
]

Norm = Literal["batch", "weight", "spectral"]

# By default, data of at most this many positions (pixels of an image) have dense networks.
DENSE_PIXELS = 16 * 16
# Side of the coarsest feature maps, on each axis; latents above them are vectors.
COARSEST = 4

# Modules by the number of axes: sequences (C, T), images (C, H, W), volumes (C, D, H, W).
_UPSAMPLING = {1: "linear", 2: "bilinear", 3: "trilinear"}
# Data and their patches, as einops writes them; a patch has the sides i, j and k.
_DATA = {1: "n c (t i)", 3: "n c (d i) (h j) (w k)"}
_PATCHES = {1: "n (c i) t", 3: "n (c i j k) d h w"}
_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class LayerOptions(NamedTuple):
    """Normalisation, dropout and nonlinearity of a layer.

    Attributes:
        norm: ``"batch"``, ``"weight"``, ``"spectral"`` or none.
        dropout: Probability of dropping an activation.
        slope: Negative slope of the leaky ReLU; ``None`` for a linear layer.
    """

    norm: Norm | None = None
    dropout: float = 0.0
    slope: float | None = 0.02


class Dropout(nn.Module):
    """Dropout with one random byte per activation on a CPU, in a fifth of the time of torch's Bernoulli samples.

    Args:
        probability: Probability of dropping an activation, in [0, 1); rounded to a multiple of 1/256.

    Raises:
        ValueError: If the probability is out of range.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        # A probability in (0, 1) is not rounded to 0 or 1.
        self.threshold = min(max(round(256 * probability), 1), 255) if probability else 0
        if not 0 <= probability < 1:
            raise ValueError(f"a dropout probability lies in [0, 1), got {probability}")
        self.probability = self.threshold / 256

    def forward(self, x: Tensor) -> Tensor:
        """Drop activations in training mode and scale the others by ``1 / (1 − probability)``; any shape."""
        if not self.training or not self.threshold:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():  # torch's own dropout is as fast there
            return nn.functional.dropout(x, self.probability)
        words = torch.randint(-(2**63), 2**63 - 1, ((x.numel() + 7) // 8,))
        # The mask has the memory format of the activations.
        format_ = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
        mask = torch.empty_like(x, memory_format=format_)
        bytes_ = words.view(torch.uint8)[: x.numel()].as_strided(x.shape, mask.stride())
        # 1 for bytes at or above the threshold, else 0. A comparison, converted from bool, takes three times as long.
        mask.copy_(bytes_).sub_(self.threshold - 1).clamp_(0, 1)
        return x * mask.div_(1 - self.probability)

    def extra_repr(self) -> str:
        """The rounded probability."""
        return f"probability={self.probability}"


class Convolution(nn.Conv2d):
    """``nn.Conv2d``, but faster for some inputs; the output is the same up to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """``(n, C, H, W)`` to ``(n, C', H', W')``."""
        if x.shape[2:] == self.kernel_size and not any(self.padding):
            # The kernel has one position only, so the convolution is a matrix product, which is faster.
            out = nn.functional.linear(x.flatten(1), self.weight.flatten(1), self.bias)
            return out[:, :, None, None]
        if x.device.type == "cpu":
            # In this format oneDNN does not convert the tensors before and after each layer.
            x = x.contiguous(memory_format=torch.channels_last)
            if x.shape[1] == 1:  # one channel fits both formats, and torch would assume the other one
                x = x.as_strided(x.shape, (x[0].numel(), 1, x.shape[3], 1))
        return super().forward(x)


class Layer(nn.Sequential):
    """A linear map with normalisation, nonlinearity and dropout: one row of Table 4."""


class LinearSkip(nn.Module):
    """Adds a linear map of the network's input to the means that the network returns.

    The last layer of the network is initialised to zero, so the means are the linear map alone at the start.

    Args:
        network: Module from ``(n, *source.shape)`` to the means, or to the means followed by the raw scales: in any
            shape, or along the channels where ``patches`` is given. It may take a context.
        weight: Initial weight of the linear map, ``(target.size, source.size)``. A copy of it is trained.
        patches: For a linear map between feature maps whose sides differ by a factor of 2: a convolution with kernel
            size 1 on patches of the finer maps, which lie in its channels. ``"source"`` or ``"target"`` says which
            maps are the finer ones. The weight is ``(channels of the output, channels of the input)``, patches
            included. Odd sides are padded with zeros to make patches, and cropped after them.

    Raises:
        ValueError: If the network has no linear layer or convolution.
    """

    def __init__(
        self, network: nn.Module, weight: Tensor, *, patches: Literal["source", "target"] | None = None
    ) -> None:
        super().__init__()
        self.network, self.weight = network, nn.Parameter(weight.detach().clone())
        self.takes_context = network_takes_context(network)
        self.patches = patches
        start_at_zero(network)

    def forward(self, given: Tensor, context: Tensor | None = None) -> Tensor:
        """``(n, *source.shape)`` to ``(n, k · target.size)``, or ``(n, k · C, *size)`` with patches.

        The means come first. The linear map reads no context.
        """
        output: Tensor = self.network(given, context) if self.takes_context else self.network(given)
        if self.patches is None:
            output = output.reshape(given.shape[0], -1)
            skip = nn.functional.linear(given.reshape(given.shape[0], -1), self.weight)
            return output + nn.functional.pad(skip, (0, output.shape[1] - skip.shape[1]))
        axes = given.dim() - 2
        maps = to_patches(axes)(_even(given)) if self.patches == "source" else given
        skip = nn.functional.linear(maps.movedim(1, -1), self.weight).movedim(-1, 1)
        if self.patches == "target":
            skip = from_patches(axes)(skip)
            for axis, side in enumerate(output.shape[2:], 2):
                skip = skip.narrow(axis, 0, side)
        means, rest = output.tensor_split([skip.shape[1]], 1)
        return torch.cat([means + skip, rest], 1)

    def extra_repr(self) -> str:
        """The input and output size of the linear map."""
        return f"skip={self.weight.shape[1]} → {self.weight.shape[0]}"


def linear_skips(up: nn.Module, down: nn.Module, lower: Space, upper: Space) -> tuple[LinearSkip, LinearSkip]:
    """Add linear skips to both networks of a link: an orthogonal map up, its transpose down.

    At the start the encoder's mean is an orthogonal map of its input, and the decoder's mean applies the transpose, so
    the level passes information on. Without skips an untrained level scrambles its input, and the levels above learn
    later. Between feature maps the map is the same at each position.

    Args:
        up: Network of the encoder's kernel, from ``z_{l−1}`` to the means (and raw scales) of ``z_l``.
        down: Network of the decoder's kernel, from ``z_l`` to the means (and raw scales) of ``z_{l−1}``.
        lower: Space of ``z_{l−1}``.
        upper: Space of ``z_l``: of any shape, or feature maps with half the sides of those of ``z_{l−1}``.
    """
    are_halves = upper.shape[1:] == tuple((side + 1) // 2 for side in lower.shape[1:])
    if not (upper.is_maps and are_halves and upper.shape[1:] != lower.shape[1:]):
        weight = nn.init.orthogonal_(torch.empty(upper.size, lower.size))
        return LinearSkip(up, weight), LinearSkip(down, weight.T)
    weight = nn.init.orthogonal_(torch.empty(upper.shape[0], lower.shape[0] * 2 ** (lower.rank - 1)))
    return LinearSkip(up, weight, patches="source"), LinearSkip(down, weight.T, patches="target")


def start_at_zero(network: nn.Module) -> None:
    """Set the last linear layer or convolution of a network to zero.

    Raises:
        ValueError: If it has none.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)]
    if not layers:
        raise ValueError("a linear skip starts the network's last linear layer or convolution at zero: it has none")
    # A weight-normalised layer has a parameter for the length of its weights.
    name = "parametrizations.weight.original0" if is_parametrized(layers[-1], "weight") else "weight"
    nn.init.zeros_(layers[-1].get_parameter(name))
    if layers[-1].bias is not None:
        nn.init.zeros_(layers[-1].bias)


class Reshape(nn.Module):
    """Reshapes each sample, ``(n, ...)`` to ``(n, *shape)``.

    Args:
        *shape: Shape of one sample.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """The same elements, ``(n, *shape)``."""
        return x.reshape(x.shape[0], *self.shape)

    def extra_repr(self) -> str:
        """The shape."""
        return "×".join(map(str, self.shape))


def dense(inputs: int, outputs: int, options: LayerOptions = LayerOptions()) -> Layer:
    """A fully connected layer, ``(n, inputs)`` to ``(n, outputs)``."""
    linear = nn.Linear(inputs, outputs, bias=options.norm != "batch")
    return _surrounded(linear, nn.BatchNorm1d, outputs, options)


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    options: LayerOptions = LayerOptions(),
    *,
    valid: bool = False,
    axes: int = 2,
) -> Layer:
    """A convolution, ``(n, inputs, H, W)`` to ``(n, outputs, ⌈H/stride⌉, ⌈W/stride⌉)``, or unpadded if ``valid``.

    ``axes`` is the number of axes after the channels: 1 for sequences, 2 for images, 3 for volumes.
    """
    padding = 0 if valid else kernel // 2
    linear = convolution(inputs, outputs, kernel, stride, padding, bias=options.norm != "batch", axes=axes)
    return _surrounded(linear, _BATCH_NORMS[axes], outputs, options)


def convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, *, bias: bool = True, axes: int = 2
) -> nn.Module:
    """A convolution over 1, 2 or 3 axes, without what surrounds it in a layer."""
    kind = {1: nn.Conv1d, 2: Convolution, 3: nn.Conv3d}[axes]
    return kind(inputs, outputs, kernel, stride, padding, bias=bias)


def normalised(layer: nn.Module, norm: Norm | None) -> nn.Module:
    """A layer with its weights normalised, by weight or spectral norm; any other norm leaves them as they are.

    Spectral normalisation divides the weights by an estimate of their largest singular value (Miyato et al. 2018). Each
    evaluation in training mode improves the estimate by one power iteration.
    """
    if norm == "weight":
        return weight_norm(layer)
    return spectral_norm(layer) if norm == "spectral" else layer


def takes_patches(shape: Sequence[int], goal: Sequence[int]) -> bool:
    """Whether a network reads or writes data as patches with sides of 2, instead of its first halving.

    This avoids convolutions at full resolution, which would take most of the time.

    Args:
        shape: Shape of the data, such as ``(C, H, W)``.
        goal: Coarsest resolution in the network, such as ``(h, w)``.
    """
    size = shape[1:]
    return not any(side % 2 for side in size) and min(a // b for a, b in zip(size, goal, strict=True)) >= 2


def to_patches(axes: int) -> nn.Module:
    """From data to patches with sides of 2, ``(n, C, *size)`` to ``(n, C · 2^axes, *size / 2)``; all sides are even.

    A patch lies in the channels, in the order of ``nn.PixelUnshuffle``.
    """
    # Torch's own kernel for images is faster.
    return nn.PixelUnshuffle(2) if axes == 2 else Rearrange(f"{_DATA[axes]} -> {_PATCHES[axes]}", **_sides(axes))


def from_patches(axes: int) -> nn.Module:
    """The inverse of :func:`to_patches`, ``(n, C · 2^axes, *size)`` to ``(n, C, *2 size)``."""
    return nn.PixelShuffle(2) if axes == 2 else Rearrange(f"{_PATCHES[axes]} -> {_DATA[axes]}", **_sides(axes))


def _sides(axes: int) -> dict[str, int]:
    return dict.fromkeys("ijk"[:axes], 2)


def upsample(axes: int = 2, size: Sequence[int] | None = None) -> nn.Upsample:
    """Linear upsampling to twice the resolution, or to ``size`` if one of its sides is odd; bilinear for images."""
    mode = _UPSAMPLING[axes]
    if size is not None and any(side % 2 for side in size):
        return nn.Upsample(size=tuple(size), mode=mode, align_corners=False)
    return nn.Upsample(scale_factor=2, mode=mode, align_corners=False)


class ResidualBlock(nn.Module):
    """A skip connection over two 3×3 convolutions, the second linear; maps keep their shape ``(n, C, H, W)``.

    Args:
        channels: C.
        options: Options of both convolutions; the second nonlinearity comes after the sum.
        axes: Number of axes after the channels.
    """

    def __init__(self, channels: int, options: LayerOptions, *, axes: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, channels, 3, 1, options, axes=axes),
            conv(channels, channels, 3, 1, options._replace(slope=None), axes=axes),
        )
        self.activation = nn.Identity() if options.slope is None else _leaky(options.slope)

    def forward(self, x: Tensor) -> Tensor:
        """``activation(x + body(x))``, ``(n, C, H, W)``."""
        out: Tensor = self.activation(self.body(x).add_(x))
        return out


class DenseResidualBlock(nn.Module):
    """A skip connection over two linear layers, each after its nonlinearity; the block is the identity at the start.

    Args:
        width: Number of elements.
        options: Options of both layers.
    """

    def __init__(self, width: int, options: LayerOptions) -> None:
        super().__init__()
        assert options.slope is not None
        layers: list[nn.Module] = []
        for _ in range(2):
            layers.append(nn.LeakyReLU(options.slope))
            layers += [Dropout(options.dropout)] if options.dropout else []
            layers.append(normalised(nn.Linear(width, width), options.norm))
        self.body = nn.Sequential(*layers)
        if options.norm != "spectral":  # weights of zero have no spectral norm
            start_at_zero(self.body)

    def forward(self, x: Tensor) -> Tensor:
        """``x + body(x)``, ``(n, width)``."""
        out: Tensor = x + self.body(x)
        return out


@torch.no_grad()
def initialise(module: nn.Module, scale: float) -> None:
    """Sample the weights of all linear layers and convolutions from N(0, scale²), and set their biases to zero.

    Args:
        module: Module with these layers. The weights of weight-normalised layers get these values too.
        scale: Standard deviation, positive. Of a spectrally normalised layer it is that of the weights before their
            normalisation.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            weight = torch.empty_like(layer.weight).normal_(std=scale)
            if is_parametrized(layer):
                layer.weight = weight
            else:
                layer.weight.copy_(weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _surrounded(linear: nn.Module, batch_norm: type[nn.Module], outputs: int, options: LayerOptions) -> Layer:
    layers: list[nn.Module] = [normalised(linear, options.norm)]
    if options.norm == "batch":
        layers.append(batch_norm(outputs))
    if options.slope is not None:
        layers.append(_leaky(options.slope))
    if options.dropout:
        layers.append(Dropout(options.dropout))
    return Layer(*layers)


def _leaky(slope: float) -> nn.LeakyReLU:
    """A leaky ReLU in place. Linear maps and batch normalisation do not need their outputs for the backward pass."""
    return nn.LeakyReLU(slope, inplace=True)


def _even(maps: Tensor) -> Tensor:
    """Feature maps ``(n, C, *size)``, with a row of zeros behind each axis with an odd side."""
    odd = [side % 2 for side in maps.shape[2:]]
    return nn.functional.pad(maps, [pad for is_odd in reversed(odd) for pad in (0, is_odd)]) if any(odd) else maps


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
