"""The spaces of the ladder: families of networks, and the shapes of the latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from halikit.networks.blocks import COARSEST, DENSE_PIXELS
from halikit.spaces import Space

__all__ = ["Family", "describe", "fitting_family", "halved", "ladder_spaces", "resolutions"]

Family = Literal["dense", "conv", "mixed"]

# No data can be halved this often.
_MOST_LEVELS = 64
# Largest image side for which an error message suggests other sizes.
_SEARCHED = 2**13
# A wide top latent with a standard normal prior does not couple (docs/results/images.md). A single vector above maps is
# up to twice as wide where it would have less than a sixteenth of their elements.
_WIDEST_TOP, _STEEPEST = 64, 1 / 16
# Levels of vectors are as many as make each at least this share of the level below, where nobody says how many.
_FALL = 1 / 4
_FEWEST_MAPS = 16
# The top vector has at least this many elements where the latent below allows it.
_NARROWEST_TOP = 16


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
        widths = _conv_widths(x, levels, sizes) if family == "conv" else _dense_widths(x.size, levels)
    shapes: list[tuple[int, ...]] = [(width, *size) for width, size in zip(widths, sizes, strict=False)]
    shapes += [(width,) for width in widths[len(sizes) :]]
    return (x, *(Space(f"z{level}", shape) for level, shape in enumerate(shapes, 1)))


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
        f"are not halved further (to less than {COARSEST}, or from an odd side of at most {2 * COARSEST}), or were not "
        "asked for"
    )


def fitting_family(data_shape: Sequence[int]) -> Family:
    """The default family: conv for data of more than 256 positions (16×16 pixels), dense for others and vectors."""
    return "conv" if len(data_shape) > 1 and math.prod(data_shape[1:]) > DENSE_PIXELS else "dense"


def fitting_levels(data_shape: Sequence[int], family: Family | None = None) -> int:
    """The number of levels that is recommended for data of a shape.

    Three for the dense and the mixed family. In the conv family all feature maps that fit, then as many vectors as let
    the number of elements fall gradually: a level that falls from thousands of elements to some dozens often does not
    couple (docs/results/images.md).

    Args:
        data_shape: Shape of the data.
        family: Family of networks; by default that of :func:`fitting_family`.
    """
    if (family or fitting_family(data_shape)) != "conv":
        return 3
    maps = len(_map_sizes(data_shape[1:], _MOST_LEVELS))
    last = ladder_spaces(maps + 1, data_shape, family="conv")[maps]
    return maps + max(1, math.ceil(math.log(_WIDEST_TOP / last.size, _FALL) - 1e-9))


def _dense_widths(size: int, levels: int) -> list[int]:
    """A geometric sequence of widths.

    It begins at a share of the data's size that grows with L. It ends at 1.25 times the square root of this size.
    """
    top = min(max(2, round(1.25 * math.sqrt(size))), 256)
    bottom = max(top, min(1024, round(size * (1 - 1 / (levels + 1)))))
    return [round(bottom * (top / bottom) ** (level / max(1, levels - 1))) for level in range(levels)]


def halved(size: Sequence[int]) -> tuple[int, ...]:
    """Half of a resolution, as a convolution with stride 2 returns it: odd sides are rounded up."""
    return tuple((side + 1) // 2 for side in size)


def resolutions(size: Sequence[int], goal: Sequence[int] | None = None) -> list[tuple[int, ...]]:
    """A resolution, its half, and so on, as far as no side gets smaller than the goal.

    Args:
        size: The resolution.
        goal: The coarsest resolution; by default sides of :data:`~halikit.networks.blocks.COARSEST`. Small odd sides
            are not halved towards the default, because that would leave them almost as they are: 7 would become 4.
    """
    sizes = [tuple(size)]
    while goal is None or sizes[-1] != tuple(goal):
        half = halved(sizes[-1])
        if any(side < least for side, least in zip(half, goal or [COARSEST] * len(half), strict=True)):
            break
        if goal is None and any(side % 2 and side < 2 * COARSEST for side in sizes[-1]):
            break
        sizes.append(half)
    return sizes


def _map_sizes(size: Sequence[int], levels: int) -> list[tuple[int, ...]]:
    """Resolutions of the latents that are feature maps, from the finest down; the top is a vector.

    The finest is a quarter of the data's resolution, or half of it for data that have no quarter.
    """
    _, *coarser = resolutions(size)
    return (coarser[1:] or coarser)[: levels - 1]


def _nearest_sizes(size: Sequence[int], levels: int, maps: int) -> str:
    """The nearest sizes with equal sides that allow this number of maps, in words; empty for large data."""
    smallest, axes = min(size), len(size)
    if smallest > _SEARCHED:
        return ""
    fits = [side for side in range(1, 2 * smallest + 4096) if len(_map_sizes([side] * axes, levels)) >= maps]
    nearest = [side for side in fits if side < smallest][-1:] + [side for side in fits if side > smallest][:1]
    named = " and ".join("×".join([str(side)] * axes) for side in nearest)
    return f"; the nearest sizes that have {maps}: {named}" if nearest else ""


def _conv_widths(x: Space, levels: int, sizes: Sequence[Sequence[int]]) -> list[int]:
    """Channels of maps, then widths of vectors, so that the number of elements falls gradually.

    The maps of ``z_1`` have two thirds of the elements of the data (but at least 16 channels, as far as this makes them
    no larger than the data), and each halving of the resolution halves their number. The vectors lead from the last
    maps to the top in a geometric sequence.
    """
    axes = x.rank - 1
    channels: list[int] = []
    elements = x.size
    if sizes:
        patch = round(x.shape[1] / sizes[0][0]) ** axes * x.shape[0]
        first = max(min(_FEWEST_MAPS, patch), round(2 / 3 * patch))
        channels = [first * 2 ** ((axes - 1) * level) for level in range(len(sizes))]
        elements = channels[-1] * math.prod(sizes[-1])
    top = min(_WIDEST_TOP, max(elements // 4, min(_NARROWEST_TOP, max(1, elements // 2))))
    vectors = levels - len(sizes)
    if vectors == 1:
        top = max(top, min(2 * _WIDEST_TOP, round(_STEEPEST * elements)))
    return channels + [round(elements * (top / elements) ** (i / vectors)) for i in range(1, vectors + 1)]
