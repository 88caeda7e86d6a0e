"""The networks of Table 4, row by row, and the same networks adapted to smaller images.

Table 4 is for images of 128×128, with ``z_1`` of 64×32×32 and ``z_2`` of 256 elements. For images of 64×64 and 32×32
the paper has no table; it gives ``z_1`` of 64×16×16 (section 4). Networks for 64×64 have one halving and one doubling
less between ``z_1`` and ``z_2`` than Table 4. Networks for 32×32 also have one less between ``x`` and ``z_1``. Networks
of one level (ALI) are those of two levels, joined: ``z_1`` becomes a hidden layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from torch import nn

from halikit.discriminator import JointDiscriminator
from halikit.hierarchy import Hierarchy, Link
from halikit.kernels import DeterministicKernel, Gauge, GaussianKernel, Kernel
from halikit.networks.blocks import Dropout, Layer, LayerOptions, Norm, Reshape, ResidualBlock, conv, upsample
from halikit.spaces import Space

__all__ = ["describe", "paper_discriminator", "paper_hierarchy", "paper_spaces"]

# Side of z_1 for each side of x (section 4, Table 4).
_SIDE_OF_Z1 = {128: 32, 64: 16, 32: 16}
_MAPS_OF_Z1 = 64
_SIZE_OF_Z2 = 256


class _Convolution(NamedTuple):
    """A convolution in the table. Dropout is applied to its input."""

    kernel: int
    stride: int | Literal["valid"]
    maps: int
    norm: Norm | None = None
    dropout: float = 0.0
    nonlinearity: Literal["leaky", "linear", "tanh"] = "leaky"

    def module(self, channels: int, slope: float) -> nn.Module:
        options = LayerOptions(self.norm, 0.0, slope if self.nonlinearity == "leaky" else None)
        valid = self.stride == "valid"
        layers = conv(channels, self.maps, self.kernel, 1 if valid else int(self.stride), options, valid=valid)
        before = [Dropout(self.dropout)] if self.dropout else []
        after = [nn.Tanh()] if self.nonlinearity == "tanh" else []
        return Layer(*before, *layers, *after)


class _ResnetBlock(NamedTuple):
    """A residual block in the table."""

    maps: int

    def module(self, channels: int, slope: float) -> nn.Module:
        assert channels == self.maps
        return ResidualBlock(channels, LayerOptions("batch", 0.0, slope))


class _Upsampling(NamedTuple):
    """A bilinear upsampling in the table, to twice the size."""

    maps: None = None

    def module(self, channels: int, slope: float) -> nn.Module:
        return upsample()


class _Reshaping(NamedTuple):
    """A reshaping between two rows of the table: from vectors to maps, or back."""

    shape: tuple[int, ...]

    @property
    def maps(self) -> int:
        return self.shape[0]

    def module(self, channels: int, slope: float) -> nn.Module:
        return Reshape(*self.shape)


_Row = _Convolution | _ResnetBlock | _Upsampling | _Reshaping
_Rows = tuple[_Row, ...]


def _g_z1_x(ratio: int) -> _Rows:
    """``G_z1(x)``, to maps with a side of ``1 / ratio`` of the image's."""
    return (
        _Convolution(3, 1, 32),
        _Convolution(3, 2 if ratio == 4 else 1, 64, "batch"),
        _ResnetBlock(64),
        _ResnetBlock(64),
        _Convolution(3, 2, 128, "batch"),
        _ResnetBlock(128),
        _Convolution(3, 1, 2 * _MAPS_OF_Z1),
    )


def _g_z2_z1(side: int) -> _Rows:
    """``G_z2(z_1)``, from maps with this side."""
    return (
        *[_Convolution(3, 2, 256, "batch")] * (2 if side == 32 else 1),
        _Convolution(3, 2, 512, "batch"),
        _ResnetBlock(512),
        _Convolution(4, "valid", 512, "batch"),
        _Convolution(1, 1, 2 * _SIZE_OF_Z2, nonlinearity="linear"),
    )


def _g_z1_z2(side: int) -> _Rows:
    """``G_z1(z_2)``, to maps with this side."""
    return (
        _Reshaping((_SIZE_OF_Z2, 1, 1)),
        _Convolution(1, 1, 4 * 4 * 256, "batch"),
        _Reshaping((256, 4, 4)),
        _Upsampling(),
        _ResnetBlock(256),
        _Upsampling(),
        _Convolution(3, 1, 256, "batch"),
        _Convolution(3, 1, 128, "batch"),
        *[_Upsampling()] * (1 if side == 32 else 0),
        _Convolution(3, 1, 2 * _MAPS_OF_Z1),
    )


def _g_x_z1(ratio: int, channels: int) -> _Rows:
    """``G_x(z_1)``, to images with ``ratio`` times the side of the maps."""
    return (
        _Convolution(1, 1, 64, "batch"),
        _ResnetBlock(64),
        _Upsampling(),
        _ResnetBlock(64),
        *[_Upsampling()] * (1 if ratio == 4 else 0),
        _Convolution(3, 1, 64, "batch"),
        _Convolution(3, 1, 32, "batch"),
        _Convolution(1, 1, channels, nonlinearity="tanh"),
    )


def _d_x(ratio: int) -> _Rows:
    """``D(x)``, to maps with a side of ``1 / ratio`` of the image's."""
    return (
        _Convolution(3, 1, 32, "weight", 0.2),
        *[_Convolution(3, 2, 64, "weight", 0.5)] * (2 if ratio == 4 else 1),
        _Convolution(3, 1, 64, "weight", 0.5),
    )


def _d_x_z1(side: int) -> _Rows:
    """``D(x, z_1)``, from maps with this side."""
    return (
        _Convolution(3, 1, 128, "weight", 0.2),
        *[_Convolution(3, 2, 256, "weight", 0.5)] * (2 if side == 32 else 1),
        _Convolution(3, 2, 512, "weight", 0.5),
        _Convolution(4, "valid", 512, "weight", 0.2),
    )


# D(x, z_1, z_2) without its last row, which gives the logit.
_D_X_Z1_Z2: _Rows = (
    _Reshaping((512 + _SIZE_OF_Z2, 1, 1)),
    _Convolution(1, 1, 1024, dropout=0.5),
    _Convolution(1, 1, 1024, dropout=0.5),
    _Reshaping((1024,)),
)
_LOGIT: _Rows = (_Reshaping((1024, 1, 1)), _Convolution(1, 1, 1, dropout=0.5, nonlinearity="linear"), _Reshaping((1,)))


def paper_hierarchy(
    levels: int,
    data_shape: Sequence[int],
    *,
    slope: float = 0.02,
    rectified: bool = True,
    gauge: Gauge | None = None,
    max_scale: float | None = None,
    observation_scale: float | Literal["fitted"] | None = None,
) -> Hierarchy:
    """The encoder and the decoder of Table 4. The paper has neither gauge nor upper bound of the scales.

    Args:
        levels: 2, or 1 for the same networks without ``z_1`` (ALI).
        data_shape: ``(C, 128, 128)``, ``(C, 64, 64)`` or ``(C, 32, 32)``, in [−1, 1].
        slope: Negative slope of the leaky ReLUs.
        rectified: Whether a leaky ReLU follows the last convolution before the Gaussian layers of ``z_1``, as in the
            table.
        gauge: Gauge of the latents; see :class:`~halikit.GaussianKernel`.
        max_scale: Upper bound of the latents' scales.
        observation_scale: Standard deviation of ``p(x|z_1)``, or ``"fitted"`` for a trained one; ``None`` for the
            deterministic ``p(x|z_1)`` of the paper.

    Raises:
        ValueError: If there is no network for these levels or this shape.
    """
    x, *latents = paper_spaces(levels, data_shape)
    side = _SIDE_OF_Z1[x.shape[1]]
    ratio = x.shape[1] // side
    up, down = [_g_z1_x(ratio), _g_z2_z1(side)], [_g_x_z1(ratio, x.shape[0]), _g_z1_z2(side)]
    if levels == 1:
        up, down = [_means_only(up[0]) + up[1]], [_means_only(down[1]) + down[0]]
    elif not rectified:
        up[0], down[1] = _linear(up[0]), _linear(down[1])
    links = []
    for level, (lower, upper) in enumerate(pairwise((x, *latents))):
        encoder = GaussianKernel(
            lower, upper, _network(up[level], lower.shape[0], slope), gauge=gauge, max_scale=max_scale
        )
        decoder: Kernel
        if level:
            decoder = GaussianKernel(
                upper, lower, _network(down[level], upper.shape[0], slope), gauge=gauge, max_scale=max_scale
            )
        else:
            decoder = DeterministicKernel(upper, lower, _network(down[level], upper.shape[0], slope))
            if observation_scale is not None:
                decoder = decoder.with_noise(observation_scale)
        links.append(Link(encoder, decoder))
    return Hierarchy(links)


def paper_spaces(levels: int, data_shape: Sequence[int]) -> tuple[Space, ...]:
    """The spaces of Table 4: ``x, z1, z2``, or for one level ``x, z1`` with the shape of the table's ``z2``.

    Args:
        levels: 2 or 1.
        data_shape: ``(C, 128, 128)``, ``(C, 64, 64)`` or ``(C, 32, 32)``.

    Raises:
        ValueError: If there is no network for these levels or this shape.
    """
    x = Space("x", tuple(data_shape))
    if not x.is_image or x.shape[1] != x.shape[2] or x.shape[1] not in _SIDE_OF_Z1:
        sides = ", ".join(f"{side}×{side}" for side in _SIDE_OF_Z1)
        raise ValueError(f"the paper's networks take images of {sides}, got {x}; family='conv' takes any")
    if levels not in (1, 2):
        raise ValueError(f"the paper's networks have 2 levels, or 1 for ALI, got {levels}; family='conv' has any")
    side = _SIDE_OF_Z1[x.shape[1]]
    shapes = [(_MAPS_OF_Z1, side, side), (_SIZE_OF_Z2,)][-levels:]
    return (x, *(Space(f"z{level}", shape) for level, shape in enumerate(shapes, 1)))


def paper_discriminator(
    spaces: Sequence[Space], *, weight_norm: bool = True, input_noise: float = 0.2, slope: float = 0.02
) -> JointDiscriminator:
    """The discriminator of Table 4.

    Args:
        spaces: The spaces of :func:`paper_hierarchy`.
        weight_norm: Whether to weight-normalise the first two stages, as in the table.
        input_noise: Standard deviation of the noise on ``x`` in training.
        slope: Negative slope of the leaky ReLUs.

    Raises:
        ValueError: If the spaces are not those of :func:`paper_spaces`.
    """
    levels, x = len(spaces) - 1, spaces[0]
    expected = paper_spaces(levels, x.shape)
    if tuple(spaces) != expected:
        raise ValueError(
            f"the paper's discriminator reads {', '.join(map(str, expected))}, got {', '.join(map(str, spaces))}"
        )
    side = _SIDE_OF_Z1[x.shape[1]]
    below, between = _d_x(x.shape[1] // side), _d_x_z1(side)
    # The number of channels that each stage reads (features of the stage before, and a latent), and its rows.
    stages = [(x.shape[0], below), (64 + _MAPS_OF_Z1, between)] if levels == 2 else [(x.shape[0], below + between)]
    stages.append((512 + _SIZE_OF_Z2, _D_X_Z1_Z2))
    if not weight_norm:
        stages = [(channels, _without_weight_norm(rows)) for channels, rows in stages]
    return JointDiscriminator(
        spaces,
        [_network(rows, channels, slope) for channels, rows in stages],
        nn.Sequential(_network(_LOGIT, 1024, slope)),
        input_noise=input_noise,
    )


def describe(spaces: Sequence[Space]) -> str:
    """The source of the networks in one phrase."""
    x, *latents = spaces
    source = "Table 4" if x.shape[1] == 128 else f"Table 4, read for {x.shape[1]}×{x.shape[2]} images"
    return source if len(latents) == 2 else f"{source}, its two levels joined into one"


def _network(rows: _Rows, channels: int, slope: float) -> nn.Sequential:
    """A network with one module for each row."""
    modules = []
    for row in rows:
        modules.append(row.module(channels, slope))
        channels = row.maps or channels
    return nn.Sequential(*modules)


def _last(rows: _Rows) -> tuple[_Rows, _Convolution]:
    *first, last = rows
    assert isinstance(last, _Convolution)
    return tuple(first), last


def _linear(rows: _Rows) -> _Rows:
    """The rows without a nonlinearity after the last convolution."""
    first, last = _last(rows)
    return (*first, last._replace(nonlinearity="linear"))


def _means_only(rows: _Rows) -> _Rows:
    """The rows without the maps of the scales, so that a hidden layer replaces the Gaussian layer."""
    first, last = _last(rows)
    return (*first, last._replace(maps=last.maps // 2))


def _without_weight_norm(rows: _Rows) -> _Rows:
    return tuple(row._replace(norm=None) if isinstance(row, _Convolution) else row for row in rows)
