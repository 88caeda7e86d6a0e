"""Sizes of convolutional stacks: how wide and how deep their networks are."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["SIZES", "Size", "SizeName"]

SizeName = Literal["tiny", "small", "base", "large"]


class Size(NamedTuple):
    """The networks of one size.

    Attributes:
        hidden: Channels of the generators' feature maps at half of the data's resolution. They double with each
            halving, up to eight times this number.
        depth: Convolutions at each resolution of the generators: one, and residual blocks beyond it.
        dense: Units of the dense layers of the generators.
        discriminator: Units of the dense layers of the discriminator; its feature maps have an eighth to a half of it.
    """

    hidden: int
    depth: int
    dense: int
    discriminator: int


# The paper's generators have 64 to 512 channels, its discriminator 32 to 512 and dense layers of 1,024 (Table 4).
SIZES: dict[SizeName, Size] = {
    "tiny": Size(hidden=32, depth=1, dense=256, discriminator=256),
    "small": Size(hidden=48, depth=2, dense=512, discriminator=384),
    "base": Size(hidden=64, depth=2, dense=512, discriminator=512),
    "large": Size(hidden=128, depth=3, dense=1024, discriminator=1024),
}
