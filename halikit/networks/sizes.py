"""Sizes of convolutional stacks: how wide and how deep their networks are, and which size fits a machine and data."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["SIZES", "Size", "SizeName", "fitting_size"]

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

# For GPUs, from the largest: the fewest images that a size is chosen for, and the least memory in GiB: enough for seven
# levels on images of 128×128 pixels in batches of 32 (docs/results/images.md).
_FITTING: tuple[tuple[SizeName, int, int], ...] = (("large", 200_000, 24), ("base", 10_000, 8), ("small", 0, 6))


def fitting_size(device: str, memory: int, images: int) -> SizeName:
    """The size that ``halikit train`` chooses by default, ``--model-size auto``.

    It is tiny on a CPU. On a GPU it is small below 10,000 images, base from 10,000 and large from 200,000, or the next
    smaller size that the memory is enough for: 6 GiB for small, 8 for base and 24 for large.

    Args:
        device: Type of the device: ``"cpu"``, ``"cuda"``, …
        memory: Memory of the device in bytes; has no effect on a CPU.
        images: Number of images to train on.
    """
    if device != "cpu":
        for name, fewest, gibibytes in _FITTING:
            if images >= fewest and memory >= gibibytes * 2**30:
                return name
    return "tiny"
