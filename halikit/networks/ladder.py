"""The ladder: a hierarchy of any number of levels on data of any shape."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field
from torch import nn

from halikit.hierarchy import Hierarchy, Link
from halikit.kernels import DeterministicKernel, Gauge, GaussianKernel, Kernel
from halikit.networks.blocks import linear_skips
from halikit.networks.context import Conditional, ContextEmbedding, embedding_width
from halikit.networks.links import LinkNetworks
from halikit.networks.shapes import Family, fitting_family, ladder_spaces
from halikit.networks.sizes import SIZES, SizeName
from halikit.priors import PriorKind
from halikit.settings import ContextKind, InitialScale, NonNegative, Positive, Section
from halikit.spaces import Space

__all__ = ["ModelSettings", "ladder", "ladder_choices"]

# Defaults of the families without sizes: units and hidden layers of their networks.
_UNITS, _DEPTH = 256, 2


class ModelSettings(Section):
    """The hierarchy: the arguments of :func:`halikit.ladder`, or the networks of the paper; and the prior."""

    levels: Positive = Field(3, description="number of latent levels L")
    data_shape: tuple[Positive, ...] | None = Field(None, description="shape of x; taken from the data when training")
    family: Literal["dense", "conv", "mixed", "paper"] | None = Field(
        None, description="kind of networks; none means dense for vectors and up to 256 positions (16×16), else conv"
    )
    maps: Annotated[int, Field(ge=0)] | None = Field(None, description="latents that are feature maps (conv family)")
    widths: tuple[Positive, ...] | None = Field(None, description="elements, or channels, of each latent from z1 up")
    size: SizeName | None = Field(
        None,
        description="size of convolutional stacks: default of hidden, depth, units and discriminator.width. None means "
        "--model-size when training, tiny otherwise",
    )
    hidden: Positive | None = Field(
        None, description="units of dense layers, or channels of feature maps at half of the data's resolution"
    )
    depth: Positive | None = Field(
        None, description="hidden layers of a dense network, convolutions at each resolution of a convolutional one"
    )
    units: Positive | None = Field(None, description="units of the dense layers of convolutional stacks")
    slope: NonNegative = Field(0.02, description="negative slope of the leaky ReLUs")
    gauge: Literal["standardised", "variance_preserving"] | None = Field(
        "variance_preserving", description="what fixes location and scale of the latents"
    )
    max_scale: Annotated[float, Field(gt=0)] | None = Field(0.5, description="upper bound of the latents' scales")
    skips: bool = Field(True, description="linear skips between latents")
    latent_noise: NonNegative = Field(
        0.0, description="standard deviation of the noise on the latents that the encoder's networks read in training"
    )
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
            reason = "it is for family = 'conv'; hidden and widths say how wide other stacks are"
            sizes = {} if self.family in (None, "conv") else dict.fromkeys(("size", "units"), reason)
            return idle | sizes | {"rectified": "it is for family = 'paper'"}
        names = ["maps", "widths", "size", "hidden", "depth", "units", "skips", "latent_noise", "conditional"]
        names += ["rectified"] * (self.levels == 1)
        return idle | dict.fromkeys(names, "the paper's networks are those of Table 4")


def ladder(
    levels: int,
    data_shape: Sequence[int],
    *,
    family: Family | None = None,
    maps: int | None = None,
    widths: Sequence[int] | None = None,
    size: SizeName | None = None,
    hidden: int | None = None,
    depth: int | None = None,
    units: int | None = None,
    slope: float = 0.02,
    gauge: Gauge | None = "variance_preserving",
    max_scale: float | None = 0.5,
    skips: bool = True,
    latent_noise: float = 0.0,
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
        size: Size of the networks of the conv family, from which the next three have their defaults:
            :data:`halikit.networks.sizes.SIZES`. Default: ``"tiny"``, for one core.
        hidden: Units of dense layers (default 256), or channels of feature maps at half of the data's resolution in
            the conv family; they double with each halving, up to eight times this number. The mixed family's
            convolutions have ``hidden / 16`` channels at first.
        depth: Hidden layers of a dense network (default 2); in the conv family convolutions at each resolution, of
            which all but the first form residual blocks of two.
        units: Units of dense layers in the conv family.
        slope: Negative slope of the leaky ReLUs.
        gauge: Gauge of the latents; see :class:`~halikit.GaussianKernel`.
        max_scale: Upper bound of the latents' scales.
        skips: Whether kernels between latents have linear skips, see
            :func:`~halikit.networks.blocks.linear_skips`.
        latent_noise: Standard deviation of the noise on ``z_1 … z_{L−1}`` where networks of the encoder read them in
            training. It makes the upper levels depend on more than small details of the latents below. The
            discriminator does not see it, and linear skips do not have it.
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
    choices = ladder_choices(
        levels, data_shape, family=family, maps=maps, widths=widths, size=size, hidden=hidden, depth=depth, units=units
    )
    family, widths = choices["family"], choices["widths"]
    spaces = ladder_spaces(levels, data_shape, family=family, maps=maps, widths=widths)
    links = []
    reads = _Reading(context, flat=family == "dense")
    options = {name: choices[name] for name in ("family", "hidden", "depth")}
    options |= {"units": choices["units"] or choices["hidden"], "slope": slope, "noise": latent_noise}
    for level, (lower, upper) in enumerate(pairwise(spaces)):
        to_upper = reads(LinkNetworks(spaces[0], reads.beside(lower), upper, **options).up())
        ascending = LinkNetworks(spaces[0], lower, reads.beside(upper), **options)
        down: Kernel
        if level:
            to_lower = reads(ascending.down(2))
            if skips:
                to_upper, to_lower = linear_skips(to_upper, to_lower, lower, upper)
            down = GaussianKernel(upper, lower, to_lower, gauge=gauge, max_scale=max_scale)
        else:
            to_x = nn.Sequential(ascending.down(1), *([nn.Tanh()] if lower.is_image else []))
            down = DeterministicKernel(upper, lower, reads(to_x))
            if observation_scale is not None:
                down = down.with_noise(observation_scale)
        links.append(Link(GaussianKernel(lower, upper, to_upper, gauge=gauge, max_scale=max_scale), down))
    return Hierarchy(links)


def ladder_choices(
    levels: int,
    data_shape: Sequence[int],
    *,
    family: Family | None = None,
    maps: int | None = None,
    widths: Sequence[int] | None = None,
    size: SizeName | None = None,
    hidden: int | None = None,
    depth: int | None = None,
    units: int | None = None,
) -> dict[str, Any]:
    """The arguments of :func:`ladder` by name, with its defaults filled in.

    Raises:
        ValueError: As in :func:`ladder`.
    """
    family = family or fitting_family(data_shape)
    if size not in (None, *SIZES) or (family != "conv" and (size or units)):
        raise ValueError(
            f"sizes are {', '.join(SIZES)}, for the conv family; got {size!r} and units={units} for {family}: "
            "hidden and widths say how wide other stacks are"
        )
    given = {
        name: number for name, number in (("hidden", hidden), ("depth", depth), ("units", units)) if number is not None
    }
    if any(number < 1 for number in given.values()):
        raise ValueError(f"networks need a positive depth and width, got depth={depth}, hidden={hidden}, units={units}")
    latents = ladder_spaces(levels, data_shape, family=family, maps=maps, widths=widths)[1:]
    choices: dict[str, Any] = {
        "family": family,
        "maps": sum(space.is_maps for space in latents),
        "widths": tuple(space.shape[0] for space in latents),
    }
    if family == "conv":
        chosen = SIZES[size or "tiny"]
        choices |= {"size": size or "tiny", "hidden": chosen.hidden, "depth": chosen.depth, "units": chosen.dense}
    else:
        choices |= {"size": None, "hidden": _UNITS, "depth": _DEPTH, "units": None}
    return choices | given


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
