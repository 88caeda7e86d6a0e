"""The ladder: a hierarchy of any number of levels on data of any shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field
from torch import nn

from halikit.hierarchy import Hierarchy, Link
from halikit.kernels import DeterministicKernel, Gauge, GaussianKernel, Kernel
from halikit.networks.blocks import (
    COARSEST,
    DENSE_PIXELS,
    LayerOptions,
    ResidualBlock,
    conv,
    convolution,
    dense,
    from_patches,
    linear_skips,
    takes_patches,
    to_patches,
    upsample,
)
from halikit.networks.context import Conditional, ContextEmbedding, embedding_width
from halikit.priors import PriorKind
from halikit.settings import ContextKind, InitialScale, NonNegative, Positive, Section
from halikit.spaces import Space

__all__ = ["Family", "ModelSettings", "describe", "fitting_family", "ladder", "ladder_spaces"]

Family = Literal["dense", "conv", "mixed"]

# Default of ``hidden``: units of dense layers, or channels of the finest maps.
_HIDDEN = {"dense": 256, "conv": 32, "mixed": 256}
# Largest image side for which an error message suggests other sizes.
_SEARCHED = 2**13
# Channels that the networks of sequences and volumes stop growing at. Those of images double with each halving, as in
# the models that are stored.
_MOST_CHANNELS = 256


class ModelSettings(Section):
    """The hierarchy: the arguments of :func:`halikit.ladder`, or the networks of the paper; and the prior."""

    levels: Positive = Field(3, description="number of latent levels L")
    data_shape: tuple[Positive, ...] | None = Field(None, description="shape of x; taken from the data when training")
    family: Literal["dense", "conv", "mixed", "paper"] | None = Field(
        None, description="kind of networks; none means dense for vectors and up to 256 positions (16×16), else conv"
    )
    maps: Annotated[int, Field(ge=0)] | None = Field(None, description="latents that are feature maps (conv family)")
    widths: tuple[Positive, ...] | None = Field(None, description="elements, or channels, of each latent from z1 up")
    hidden: Positive | None = Field(None, description="units of dense layers, or channels of the finest feature maps")
    depth: Positive = Field(2, description="hidden layers of a dense network, residual blocks of a convolutional one")
    slope: NonNegative = Field(0.02, description="negative slope of the leaky ReLUs")
    gauge: Literal["standardised", "variance_preserving"] | None = Field(
        "variance_preserving", description="what fixes location and scale of the latents"
    )
    max_scale: Annotated[float, Field(gt=0)] | None = Field(0.5, description="upper bound of the latents' scales")
    skips: bool | None = Field(None, description="linear skips between latents; where latents are vectors if none")
    observation_scale: Annotated[float, Field(gt=0)] | Literal["fitted"] | None = Field(
        None, description="standard deviation of p(x|z1), fitted to learn it, or none for a deterministic p(x|z1)"
    )
    classes: Annotated[int, Field(ge=2)] | None = Field(None, description="number of classes of a level on top (Eq. 9)")
    conditional: ContextKind | None = Field(
        None, description="what all networks read of each datum beside it: labels or attributes; nothing if none"
    )
    context_size: Positive | None = Field(
        None, description="number of classes or attributes; taken from the data when training"
    )
    prior: PriorKind = Field("standard_normal", description="prior on the top latent, trained if it has parameters")
    prior_components: Positive = Field(10, description="components of a mixture as the prior")
    prior_layers: Annotated[int, Field(ge=2)] = Field(4, description="coupling layers of a flow as the prior")
    rectified: bool = Field(True, description="paper family: leaky ReLU before the Gaussian layers of z1")
    initial_scale: InitialScale = None

    def without_effect(self) -> dict[str, str]:
        """The settings that the family or the prior does not read."""
        idle = {"prior": "classes on top have equal probabilities"} if self.classes else {}
        kinds = {"prior_components": "mixture", "prior_layers": "flow"}
        idle |= {name: f"it is for prior = {kind!r}" for name, kind in kinds.items() if self.prior != kind}
        idle |= {} if self.conditional else {"context_size": "it is for model.conditional"}
        if self.family != "paper":
            return idle | {"rectified": "it is for family = 'paper'"}
        names = ["maps", "widths", "hidden", "depth", "skips", "conditional"] + ["rectified"] * (self.levels == 1)
        return idle | dict.fromkeys(names, "the paper's networks are those of Table 4")


def ladder(
    levels: int,
    data_shape: Sequence[int],
    *,
    family: Family | None = None,
    maps: int | None = None,
    widths: Sequence[int] | None = None,
    hidden: int | None = None,
    depth: int = 2,
    slope: float = 0.02,
    gauge: Gauge | None = "variance_preserving",
    max_scale: float | None = 0.5,
    skips: bool | None = None,
    observation_scale: float | Literal["fitted"] | None = None,
    context: int | None = None,
) -> Hierarchy:
    """Build a hierarchy of ``levels`` links of Gaussian kernels on data of any shape.

    All kernels of the encoder and all kernels between latents have the gauge. ``p(x|z_1)`` has none: it is
    deterministic unless there is an observation scale. Its network ends in tanh for images, in a linear layer for
    vectors, sequences and volumes.

    Args:
        levels: L, at least 1.
        data_shape: ``(C, H, W)`` for images in [−1, 1]; ``(D,)`` for vectors, ``(C, T)`` for sequences and
            ``(C, D, H, W)`` for volumes of any numbers, best of about unit scale.
        family: ``"dense"``: latents are vectors. ``"conv"``: lower latents are feature maps with sides down to 4, upper
            ones vectors. ``"mixed"``: latents are vectors, the encoder of the data has a few strided convolutions, all
            other networks are dense. Default: dense for vectors and for data of at most 256 positions (such as 16×16
            pixels), else conv.
        maps: Number of latents that are feature maps (conv family); by default all but the top, as far as the size of
            the data allows.
        widths: Number of elements of each latent, or of channels if it is a feature map, from z_1 up.
        hidden: Units of dense layers (default 256), or channels of the finest feature maps in the conv family
            (default 32). The mixed family's convolutions have ``hidden / 16`` channels at first and double them.
            For sequences and volumes channels stop growing at 256.
        depth: Hidden layers of a dense network, at least 1; residual blocks of a convolutional one.
        slope: Negative slope of the leaky ReLUs.
        gauge: Gauge of the latents; see :class:`~halikit.GaussianKernel`.
        max_scale: Upper bound of the latents' scales.
        skips: Whether kernels between latents have linear skips, see
            :func:`~halikit.networks.blocks.linear_skips`. Default: in the dense and the mixed family. The conv family
            cannot have them.
        observation_scale: Standard deviation of ``p(x|z_1)``, or ``"fitted"`` for a trained one; ``None`` for the
            deterministic ``p(x|z_1)`` of the paper.
        context: Number of classes or attributes K of a context, which all networks then read: ``(n,)`` int64, or
            ``(n, K)`` floats. See :class:`~halikit.Hierarchy`.

    Raises:
        ValueError: If a number is out of range or the shape of the data is not supported.

    Example:
        >>> print(ladder(2, (1, 8, 8)))
        encoder T_{z2|z1} ∘ T_{z1|x}
        decoder T_{x|z1} ∘ T_{z1|z2}
    """
    family = family or fitting_family(data_shape)
    spaces = ladder_spaces(levels, data_shape, family=family, maps=maps, widths=widths)
    skips = _skips(family, skips)
    links = []
    reads = _Reading(context, flat=family == "dense")
    make = partial(_Networks, family=family, hidden=hidden, depth=depth, slope=slope)
    for level, (lower, upper) in enumerate(pairwise(spaces)):
        to_upper = reads(make(reads.beside(lower), upper, in_patches=not level).up())
        ascending = make(lower, reads.beside(upper), in_patches=not level)
        down: Kernel
        if level:
            to_lower = reads(ascending.down(2))
            if skips:
                to_upper, to_lower = linear_skips(to_upper, to_lower, lower.size, upper.size)
            down = GaussianKernel(upper, lower, to_lower, gauge=gauge, max_scale=max_scale)
        else:
            to_x = nn.Sequential(ascending.down(1), *([nn.Tanh()] if lower.is_image else []))
            down = DeterministicKernel(upper, lower, reads(to_x))
            if observation_scale is not None:
                down = down.with_noise(observation_scale)
        links.append(Link(GaussianKernel(lower, upper, to_upper, gauge=gauge, max_scale=max_scale), down))
    return Hierarchy(links)


def ladder_spaces(
    levels: int,
    data_shape: Sequence[int],
    *,
    family: Family | None = None,
    maps: int | None = None,
    widths: Sequence[int] | None = None,
) -> tuple[Space, ...]:
    """The spaces ``x, z1, …, zL`` of :func:`ladder`, for the same arguments.

    Raises:
        ValueError: As in :func:`ladder`.
    """
    x = Space("x", tuple(data_shape))
    if levels < 1:
        raise ValueError(f"a hierarchy has at least one level, got levels={levels}")
    if x.rank != 1 and not x.is_maps:
        raise ValueError(
            f"the ladder takes vectors (D,), sequences (C, T), images (C, H, W) and volumes (C, D, H, W), got {x.shape}"
        )
    family = family or fitting_family(data_shape)
    if family not in ("dense", "conv", "mixed"):
        raise ValueError(f"family is 'dense', 'conv' or 'mixed', got {family!r}")
    if family != "dense" and not x.is_maps:
        raise ValueError(
            f"convolutions need channels and axes, such as (C, T) or (C, H, W), got {x.shape}; use family='dense'"
        )
    if widths is not None and (len(widths) != levels or min(widths) < 1):
        raise ValueError(f"{levels} levels need {levels} positive widths, got {list(widths)}")
    sizes = _map_sizes(x.shape[1:], levels) if family == "conv" else []
    if maps is not None and not 0 <= maps <= len(sizes):
        raise ValueError(
            f"{levels} {family} levels on {x} can have 0 to {len(sizes)} latents with maps, got {maps}"
            + _nearest_sizes(x.shape[1:], levels, maps)
        )
    sizes = sizes[:maps]
    if widths is None:
        widths = _conv_widths(x, levels, len(sizes)) if family == "conv" else _dense_widths(x.size, levels)
    shapes: list[tuple[int, ...]] = [(width, *size) for width, size in zip(widths, sizes, strict=False)]
    shapes += [(width,) for width in widths[len(sizes) :]]
    return (x, *(Space(f"z{level}", shape) for level, shape in enumerate(shapes, 1)))


def ladder_choices(
    levels: int,
    data_shape: Sequence[int],
    *,
    family: Family | None = None,
    maps: int | None = None,
    widths: Sequence[int] | None = None,
    hidden: int | None = None,
    skips: bool | None = None,
) -> dict[str, Any]:
    """The arguments of :func:`ladder` by name, with its defaults filled in.

    Raises:
        ValueError: As in :func:`ladder`.
    """
    family = family or fitting_family(data_shape)
    latents = ladder_spaces(levels, data_shape, family=family, maps=maps, widths=widths)[1:]
    return {
        "family": family,
        "maps": sum(space.is_maps for space in latents),
        "widths": tuple(space.shape[0] for space in latents),
        "hidden": hidden or _HIDDEN[family],
        "skips": _skips(family, skips),
    }


def describe(spaces: Sequence[Space], family: Family | None = None) -> str:
    """The kinds of latents in one phrase, with the reason if lower latents of the conv family are vectors."""
    x, *latents = spaces
    family = family or fitting_family(x.shape)
    vectors = [space.name for space in latents if not space.is_maps]
    if family == "dense":
        return "dense: every latent is a vector"
    if family == "mixed":
        return "mixed: every latent is a vector, reached by strided convolutions"
    if len(vectors) <= 1:
        return "conv: feature maps below, a vector on top"
    coarsest = next((space for space in reversed(latents) if space.is_maps), x)
    return (
        f"conv: {', '.join(vectors)} are vectors, because {'×'.join(map(str, coarsest.shape[1:]))} maps "
        f"are not halved further (sizes must be even, and at least {COARSEST} after halving), or were not asked for"
    )


def fitting_family(data_shape: Sequence[int]) -> Family:
    """The default family: conv for data of more than 256 positions (16×16 pixels), dense for others and vectors."""
    return "conv" if len(data_shape) > 1 and math.prod(data_shape[1:]) > DENSE_PIXELS else "dense"


def _skips(family: Family, requested: bool | None) -> bool:
    """Whether kernels between latents have linear skips."""
    if requested and family == "conv":
        raise ValueError("linear skips are for families whose latents are vectors, got skips=True with family='conv'")
    return family != "conv" if requested is None else requested


def _dense_widths(size: int, levels: int) -> list[int]:
    """A geometric sequence of widths.

    It begins at a share of the data's size that grows with L. It ends at 1.25 times the square root of this size.
    """
    top = min(max(2, round(1.25 * math.sqrt(size))), 256)
    bottom = max(top, min(1024, round(size * (1 - 1 / (levels + 1)))))
    return [round(bottom * (top / bottom) ** (level / max(1, levels - 1))) for level in range(levels)]


def _map_sizes(size: Sequence[int], levels: int) -> list[tuple[int, ...]]:
    """Resolutions of the latents that are feature maps; the top latent is a vector.

    The first has a quarter of the data's resolution. For images below 64×64 it has a half, if not all levels get maps
    otherwise.
    """

    def halved(factor: int) -> list[tuple[int, ...]]:
        sizes: list[tuple[int, ...]] = []
        while len(sizes) < levels - 1 and not any(side % factor for side in size) and min(size) >= factor * COARSEST:
            sizes.append(tuple(side // factor for side in size))
            factor *= 2
        return sizes

    from_quarter = halved(4)
    return from_quarter if len(from_quarter) == levels - 1 or min(size) >= 64 else halved(2)


def _nearest_sizes(size: Sequence[int], levels: int, maps: int) -> str:
    """The nearest sizes with equal sides that allow this number of maps, in words; empty for large data."""
    smallest, axes = min(size), len(size)
    if smallest > _SEARCHED:
        return ""
    fits = [side for side in range(1, 2 * smallest + 4096) if len(_map_sizes([side] * axes, levels)) >= maps]
    nearest = [side for side in fits if side < smallest][-1:] + [side for side in fits if side > smallest][:1]
    named = " and ".join("×".join([str(side)] * axes) for side in nearest)
    return f"; the nearest sizes that have {maps}: {named}" if nearest else ""


def _conv_widths(x: Space, levels: int, maps: int) -> list[int]:
    """Channels of maps, which grow by √2 with each halving, then widths of vectors, from at most 256 down."""
    channels = [min(256, round(16 * 2 ** (level / 2))) for level in range(maps)]
    vectors = levels - maps
    top = min(256, max(16, round(1.25 * math.sqrt(x.size))))
    bottom = min(256, 2 * top)
    ratio = (top / bottom) ** (1 / max(1, vectors - 1))
    return channels + [round(bottom * ratio**i) if vectors > 1 else top for i in range(vectors)]


class _Reading(NamedTuple):
    """Lets networks read a context beside their input.

    Attributes:
        context: Number of classes or attributes; ``None`` where networks read no context.
        flat: Whether inputs are flattened first.
    """

    context: int | None
    flat: bool

    def beside(self, space: Space) -> Space:
        """The inputs to build a network for: a state of ``space``, and the embedding of the context beside it."""
        if self.context is None:
            return space
        channels, *size = (space.size,) if self.flat else space.shape
        return Space(space.name, (channels + embedding_width(self.context), *size))

    def __call__(self, network: nn.Module) -> nn.Module:
        """The network of the state and the context."""
        if self.context is None:
            return network
        return Conditional(network, ContextEmbedding(self.context), flat=self.flat)


class _Networks:
    """Builds the two networks of the link between two spaces."""

    def __init__(
        self,
        lower: Space,
        upper: Space,
        family: Family,
        hidden: int | None,
        depth: int,
        slope: float,
        *,
        in_patches: bool,
    ) -> None:
        if depth < 1 or (hidden is not None and hidden < 1):
            raise ValueError(f"networks need a positive depth and width, got depth={depth}, hidden={hidden}")
        self.lower, self.upper = lower, upper
        self.options = LayerOptions("batch", 0.0, slope)
        self.depth = depth
        self.axes = lower.rank - 1
        self.is_dense = family != "conv" or not lower.is_maps
        self.is_strided = family == "mixed" and lower.is_maps
        self.dense_width = hidden or _HIDDEN["dense"] if family != "conv" else _HIDDEN["dense"]
        self.hidden = hidden or _HIDDEN["conv"]
        self.in_patches = in_patches and not self.is_dense and takes_patches(lower.shape, self._halvings()[-1])

    def up(self) -> nn.Sequential:
        """The network from ``lower`` to means and raw scales on ``upper``."""
        if self.is_strided:
            return self._strided()
        if self.is_dense:
            return self._dense(self.lower.size, 2 * self.upper.size)
        return self._descending()

    def down(self, outputs: int) -> nn.Sequential:
        """The network from ``upper`` to ``outputs`` tensors on ``lower``."""
        if self.is_dense:
            return nn.Sequential(self._dense(self.upper.size, outputs * self.lower.size), *self._shaped(outputs))
        return self._ascending(outputs)

    def _shaped(self, outputs: int) -> list[nn.Module]:
        lower = self.lower
        return [nn.Unflatten(1, (outputs * lower.shape[0], *lower.shape[1:]))] if lower.is_maps else []

    def _dense(self, inputs: int, outputs: int) -> nn.Sequential:
        sizes = [inputs, *[self.dense_width] * self.depth]
        hidden = [dense(a, b, self.options) for a, b in pairwise(sizes)]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], outputs))

    def _strided(self) -> nn.Sequential:
        """One strided convolution for each halving down to the coarsest maps, which is fast on a CPU."""
        inputs, size = self.lower.shape[0], self.lower.shape[1:]
        first, kernel = max(1, self.dense_width // 16), 5
        layers: list[nn.Module] = []
        while not layers or min(size) > COARSEST:
            channels = self._doubled(first, len(layers))
            layers.append(conv(inputs, channels, kernel, 2, self.options, axes=self.axes))
            inputs, kernel = channels, 3
            size = tuple((side + 1) // 2 for side in size)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * math.prod(size), 2 * self.upper.size))

    def _doubled(self, channels: int, times: int) -> int:
        """Channels after some halvings of the resolution."""
        doubled = channels * 2**times
        return doubled if self.axes == 2 else max(channels, min(doubled, _MOST_CHANNELS))

    def _halvings(self) -> list[tuple[int, ...]]:
        """Resolutions from ``lower`` down to ``upper``, or down to the coarsest maps if ``upper`` is a vector."""
        size = self.lower.shape[1:]
        goal = min(self.upper.shape[1:]) if self.upper.is_maps else COARSEST
        sizes = [size]
        while min(size) // 2 >= goal and (self.upper.is_maps or not any(side % 2 for side in size)):
            size = tuple(side // 2 for side in size)
            sizes.append(size)
        return sizes

    def _channels(self) -> list[int]:
        """Channels at each resolution of :meth:`_halvings` that has convolutions, the finest first."""
        channels = [self._doubled(self.hidden, times) for times in range(len(self._halvings()))]
        return channels[1:] if self.in_patches else channels

    def _descending(self) -> nn.Sequential:
        axes, (finest, *coarser) = self.axes, self._channels()
        inputs = self.lower.shape[0]
        layers: list[nn.Module] = []
        if self.in_patches:
            layers.append(to_patches(axes))
            inputs *= 2**axes
        layers.append(conv(inputs, finest, 3, 1, self.options._replace(norm=None), axes=axes))
        channels = finest
        for outputs in coarser:
            layers.append(conv(channels, outputs, 3, 2, self.options, axes=axes))
            channels = outputs
            layers += [ResidualBlock(channels, self.options, axes=axes) for _ in range(self.depth - 1)]
        if self.upper.is_maps:
            layers.append(convolution(channels, 2 * self.upper.shape[0], 3, padding=1, axes=axes))
        else:
            features = channels * math.prod(self._halvings()[-1])
            layers += [nn.Flatten(), dense(features, self.dense_width, self.options)]
            layers.append(nn.Linear(self.dense_width, 2 * self.upper.size))
        return nn.Sequential(*layers)

    def _ascending(self, outputs: int) -> nn.Sequential:
        axes, coarsest = self.axes, self._halvings()[-1]
        channels, *finer = reversed(self._channels())
        layers: list[nn.Module] = []
        if self.upper.is_maps:
            layers.append(conv(self.upper.shape[0], channels, 3, 1, self.options, axes=axes))
        else:
            layers.append(dense(self.upper.size, channels * math.prod(coarsest), self.options))
            layers.append(nn.Unflatten(1, (channels, *coarsest)))
        for finer_channels in finer:
            layers += [ResidualBlock(channels, self.options, axes=axes) for _ in range(self.depth - 1)]
            layers += [upsample(axes), conv(channels, finer_channels, 3, 1, self.options, axes=axes)]
            channels = finer_channels
        maps = outputs * self.lower.shape[0]
        if self.in_patches:
            layers += [convolution(channels, 2**axes * maps, 3, padding=1, axes=axes), from_patches(axes)]
        else:
            layers.append(convolution(channels, maps, 3, padding=1, axes=axes))
        return nn.Sequential(*layers)
