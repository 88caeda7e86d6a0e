"""Builds the joint discriminator for the spaces of a hierarchy (Table 4, third part)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import pairwise, zip_longest
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from halikit.discriminator import (
    Discriminator,
    JointDiscriminator,
    MultiGameDiscriminator,
    at_least_vectors,
    concatenate,
)
from halikit.hierarchy import Hierarchy
from halikit.networks.augmentation import Augmentation, DifferentiableAugmentation
from halikit.networks.blocks import (
    COARSEST,
    DENSE_PIXELS,
    DenseResidualBlock,
    LayerOptions,
    Norm,
    conv,
    dense,
    normalised,
    takes_patches,
    to_patches,
)
from halikit.networks.context import ContextEmbedding
from halikit.networks.paper import paper_discriminator
from halikit.networks.shapes import Family, resolutions
from halikit.settings import Fraction, InitialScale, NonNegative, Positive, Section
from halikit.spaces import Space

__all__ = ["DENSE_WIDTH", "DiscriminatorSettings", "build_discriminator", "discriminator_for"]

# Default width.
DENSE_WIDTH = 256
# Pooling to a given resolution, by the number of axes.
_POOLING = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
# Families that do not use build_discriminator. Their builders take the spaces and the settings that have an effect.
_TWO_NORMS = "weight_norm and spectral_norm normalise the same weights: for spectral_norm, set weight_norm to false"
_BUILDERS: dict[str | None, Callable[..., Discriminator]] = {"paper": paper_discriminator}


class DiscriminatorSettings(Section):
    """The discriminator: the arguments of :func:`halikit.build_discriminator`, or the network of the paper."""

    games: Literal["joint", "pairwise"] | tuple[tuple[str, ...], ...] = Field(
        "joint", description="joint, pairwise, or the spaces of each game, such as [['x', 'z1', 'z2'], ['x', 'z2']]"
    )
    family: Literal["dense", "conv", "paper"] | None = Field(
        None, description="kind of networks; none chooses it by the shapes of the spaces"
    )
    width: Positive | None = Field(
        None,
        description="units of dense layers; feature maps have an eighth to a half of it. 256, or that of model.size",
    )
    depth: Positive = Field(1, description="layers per stage beyond those that reduce the resolution")
    dropout: Fraction = Field(0.2, description="probability of dropping an activation")
    weight_norm: bool = Field(True, description="weight-normalise the stages (Table 4)")
    spectral_norm: bool = Field(False, description="spectrally normalise all layers; needs weight_norm = false")
    input_noise: NonNegative = Field(0.2, description="standard deviation of the noise on the discriminator's x")
    augment: tuple[Augmentation, ...] = Field(
        (), description="random changes of the images that the discriminator sees: colour, shift, cutout"
    )
    slope: NonNegative = Field(0.2, description="negative slope of the leaky ReLUs")
    initial_scale: InitialScale = None

    def without_effect(self) -> dict[str, str]:
        """The settings that the paper's discriminator does not read."""
        names = ("games", "width", "depth", "dropout", "spectral_norm", "augment") if self.family == "paper" else ()
        return dict.fromkeys(names, "the paper's discriminator is that of Table 4")

    @model_validator(mode="after")
    def _has_one_norm(self) -> Self:
        if self.weight_norm and self.spectral_norm:
            raise ValueError(_TWO_NORMS)
        return self


def build_discriminator(
    hierarchy: Hierarchy,
    *,
    games: Literal["joint", "pairwise"] | Sequence[Sequence[str]] = "joint",
    family: Family | None = None,
    width: int | None = None,
    depth: int = 1,
    dropout: float = 0.2,
    weight_norm: bool = True,
    spectral_norm: bool = False,
    input_noise: float = 0.2,
    augment: Sequence[Augmentation] = (),
    slope: float = 0.2,
    context: int | None = None,
    stages: Mapping[int, nn.Module] | None = None,
    head: nn.Sequential | None = None,
) -> JointDiscriminator | MultiGameDiscriminator:
    """Build a discriminator for the spaces of a hierarchy, of any shapes.

    Args:
        hierarchy: Hierarchy whose spaces the discriminator reads.
        games: ``"joint"`` for one game over all spaces, ``"pairwise"`` for one game over each adjacent pair, or the
            names of the spaces of each game, such as ``[["x", "z1", "z2"], ["x", "z2"]]``.
        family: How a stage reads data or feature maps if the next space is a vector: ``"dense"`` flattens them,
            ``"conv"`` convolves them, ``None`` flattens those of at most 256 positions (16×16 pixels) and convolves
            larger ones. Sequences are read so whatever the next space is.
        width: Units of dense layers and of the head (default 256); feature maps have between ``width / 8`` and
            ``width / 2`` channels.
        depth: Layers per stage beyond those that reduce the resolution; at least one.
        dropout: Probability of dropping an activation.
        weight_norm: Whether to weight-normalise the stages, as Table 4 does.
        spectral_norm: Whether to normalise all layers that are built here by their spectral norm, head and projection
            included (Miyato et al. 2018); not together with ``weight_norm``.
        input_noise: Standard deviation of the noise on ``x`` in training.
        augment: Random changes of the images that the discriminator sees, see
            :class:`~halikit.networks.augmentation.DifferentiableAugmentation`.
        slope: Negative slope of the leaky ReLUs.
        context: Number of classes or attributes of the context, for a projection on it in each game: the logit is
            ``head(features) + ⟨embedding(context), features⟩`` (Miyato & Koyama 2018). The context is found among the
            states under the name ``context``: ``(n,)`` int64 for classes, ``(n, A)`` floats for attributes.
        stages: Modules to use instead of the built stages, by number of the stage (joint game only). Stage ``l ≥ 1``
            reads the features of the stage before, concatenated with ``z_l``.
        head: Module to use instead of the built head (joint game only), from ``(n, width)`` to the logit ``(n, 1)``. A
            linear layer in front of it maps the features of the last stage to ``width``.

    Raises:
        ValueError: If width, depth or context is not positive, both norms are asked for, a game is unknown, or a stage
            to replace does not exist.
    """
    width = DENSE_WIDTH if width is None else width
    if width < 1 or depth < 1:
        raise ValueError(f"a discriminator needs a positive width and depth, got width={width}, depth={depth}")
    if context is not None and context < 1:
        raise ValueError(f"a context has at least one class or attribute, got context={context}")
    if weight_norm and spectral_norm:
        raise ValueError(_TWO_NORMS)
    norm: Norm | None = "weight" if weight_norm else "spectral" if spectral_norm else None
    if augment and not hierarchy.spaces[0].is_image:
        raise ValueError(f"augment changes images (C, H, W), got {hierarchy.spaces[0]}")
    make = _StageMaker(family, width, depth, dropout, norm, slope, context)
    spaces = hierarchy.spaces
    if spaces[0].is_maps and not make.flattens(spaces[0].shape):
        make = make._replace(residual=True)
    if games == "joint":
        unknown = sorted(set(stages or {}) - set(range(len(spaces))))
        if unknown:
            raise ValueError(
                f"stages are 0 … {len(spaces) - 1} for {len(spaces)} spaces; there is no stage {unknown[0]}"
            )
        return _build(spaces, make, stages or {}, head, input_noise, augment)
    if stages or head is not None:
        raise ValueError("stages and head are replaced in the joint game; build several games one by one")
    listed = [games] if isinstance(games, str) else games
    read = pairwise(spaces) if games == "pairwise" else [_named(spaces, names) for names in listed]
    parts = (
        _build(each, make, {}, None, input_noise, augment)
        if each[0] == spaces[0]
        else _build(each, make, {}, None, 0.0, (), from_data=False)
        for each in read
    )
    return MultiGameDiscriminator(parts, spaces)


def discriminator_for(
    hierarchy: Hierarchy, settings: DiscriminatorSettings, *, context: int | None = None
) -> Discriminator:
    """Build the discriminator that the settings describe.

    Args:
        hierarchy: Hierarchy whose spaces the discriminator reads.
        settings: Settings of the discriminator.
        context: Number of classes or attributes of the context, if there is one.

    Raises:
        ValueError: If a setting does not fit the spaces, or the paper's discriminator is to read a context.
    """
    options = settings.model_dump(include=set(settings.applicable), exclude={"initial_scale"})
    if settings.family not in _BUILDERS:
        return build_discriminator(hierarchy, context=context, **options)
    if context is not None:
        raise ValueError("the paper's discriminator reads no context: set discriminator.family to none")
    del options["family"]
    return _BUILDERS[settings.family](hierarchy.spaces, **options)


def _named(spaces: Sequence[Space], names: Sequence[str]) -> tuple[Space, ...]:
    """The spaces of a game by their names, from the data up.

    Raises:
        ValueError: If the names are not those of at least two spaces.
    """
    known = [space.name for space in spaces]
    wrong = [name for name in names if name not in known]
    if isinstance(names, str) or wrong or len(set(names)) < 2:
        raise ValueError(
            f"games are 'joint', 'pairwise', or lists of two spaces or more among {', '.join(known)}; got {names!r}"
        )
    return tuple(space for space in spaces if space.name in names)


class _StageMaker(NamedTuple):
    """Builds stages of any shape with the same options; they hold for the head and the projection too."""

    family: Family | None
    width: int
    depth: int
    dropout: float
    norm: Norm | None
    slope: float
    context: int | None
    residual: bool = False

    def __call__(
        self, incoming: tuple[int, ...], above: Space | None, *, is_first: bool, in_patches: bool
    ) -> nn.Sequential:
        """Layers from the shape ``incoming`` to the resolution of ``above``, or to a vector if it has no such maps."""
        options = LayerOptions(self.norm, self.dropout, self.slope)
        channels, *size = incoming
        axes = len(size)
        goes_to_maps = above is not None and above.is_maps and above.rank == len(incoming)
        # A small space (C, K) may be anything, also K classes C times. So it is flattened like a vector.
        may_be_flat = not goes_to_maps or (axes == 1 and is_first)
        if self.residual and not axes:
            linear = normalised(nn.Linear(channels, self.width), self.norm)
            blocks = [DenseResidualBlock(self.width, options) for _ in range(2 * self.depth)]
            return nn.Sequential(linear, *blocks)
        if not 1 <= axes <= 3 or (may_be_flat and not self.residual and self.flattens(incoming)):
            sizes = [math.prod(incoming), *[self.width] * self.depth]
            return nn.Sequential(nn.Flatten(), *(dense(a, b, options) for a, b in pairwise(sizes)))
        layers: list[nn.Module] = []
        goal = above.shape[1:] if above is not None and goes_to_maps else (COARSEST,) * axes
        narrow, most = max(1, self.width // 8), max(1, self.width // 2)
        if in_patches and takes_patches(incoming, goal):
            layers.append(to_patches(axes))
            channels, size = 2**axes * channels, [side // 2 for side in size]
            outputs = narrow
        else:
            outputs = min(max(narrow, channels), most)
        for _ in range(self.depth):
            layers.append(conv(channels, outputs, 3, 1, options, axes=axes))
            channels = outputs
        for half in resolutions(size, goal if goes_to_maps else None)[1:]:
            outputs = min(2 * channels, most)
            layers.append(conv(channels, outputs, 3, 2, options, axes=axes))
            channels, size = outputs, list(half)
        if not goes_to_maps:
            linear = normalised(nn.Linear(channels * math.prod(size), self.width), self.norm)
            layers += [nn.Flatten(), linear]
        elif tuple(size) != goal:
            layers.append(_POOLING[axes](goal))
        return nn.Sequential(*layers)

    def flattens(self, incoming: tuple[int, ...]) -> bool:
        """Whether maps of this shape are flattened if the next space is a vector."""
        return self.family == "dense" or (self.family is None and math.prod(incoming[1:]) <= DENSE_PIXELS)


def _build(
    spaces: Sequence[Space],
    make: _StageMaker,
    replaced: Mapping[int, nn.Module],
    head: nn.Sequential | None,
    input_noise: float,
    augment: Sequence[Augmentation],
    *,
    from_data: bool = True,
) -> JointDiscriminator:
    width = make.width
    stages: list[nn.Module] = []
    features = torch.zeros(1, 0)
    for level, (space, above) in enumerate(zip_longest(spaces, spaces[1:])):
        state = at_least_vectors(torch.zeros(1, *space.shape))
        incoming = concatenate(features, state) if level else state
        if level in replaced:
            stage = replaced[level]
        else:
            is_first = not level
            shape = tuple(incoming.shape[1:])
            stage = make(shape, above, is_first=is_first, in_patches=from_data and is_first)
        stages.append(stage)
        # This run only measures the features. It uses a copy, because it may change buffers of the stage.
        with torch.no_grad():
            features = deepcopy(stage).eval()(incoming)
    # Table 4 has no weight normalisation in the head.
    norm: Norm | None = "spectral" if make.norm == "spectral" else None
    options = LayerOptions(norm, make.dropout, make.slope)
    if head is None:
        hidden = dense(width, width, options)
        head = nn.Sequential(nn.LeakyReLU(make.slope), hidden, normalised(nn.Linear(width, 1), norm))
    head = nn.Sequential(nn.Flatten(), normalised(nn.Linear(features.numel(), width), norm), *head)
    projection = None
    if make.context is not None:
        projection = normalised(_projection(make.context, _width_of(head, features)), norm)
    augmentation = DifferentiableAugmentation(augment) if augment else None
    return JointDiscriminator(
        spaces, stages, head, input_noise=input_noise, projection=projection, augmentation=augmentation
    )


@torch.no_grad()
def _width_of(head: nn.Sequential, incoming: Tensor) -> int:
    """The number of features that the last layer of a head reads."""
    return deepcopy(head[:-1]).eval()(incoming).shape[1]


def _projection(context: int, width: int) -> ContextEmbedding:
    # The variance of torch's linear layers.
    return ContextEmbedding(context, width, scale=(3 * width) ** -0.5)
