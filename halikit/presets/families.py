"""Settings for each family of networks, for any number of levels on any data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from halikit.config import (
    Config,
    DiscriminatorSettings,
    GameSettings,
    HardwareSettings,
    ModelSettings,
    OptimiserSettings,
    TrainingSettings,
    override,
)

if TYPE_CHECKING:
    from halikit.networks.ladder import Family

__all__ = ["conv", "dense", "fitting", "mixed"]


def dense(levels: int) -> Config:
    """The dense family, for vectors and small images: latents are vectors.

    Args:
        levels: L.
    """
    # Many steps at a high rate make deep stacks lose their coupling. So the rate is proportional to 1/L, the number of
    # steps to L, and the rate decays from the first step on.
    rate = min(4e-4, 1.2e-3 / levels)
    return Config(
        model=ModelSettings(levels=levels, family="dense"),
        discriminator=DiscriminatorSettings(family="dense"),
        training=TrainingSettings(steps=max(3_600, 1_200 * levels)),
        optimiser=OptimiserSettings(
            learning_rate=rate,
            # The discriminator needs a higher rate: with equal rates it learns too slowly, and latents couple far less.
            discriminator_learning_rate=4 * rate,
            final_rate_share=0.1,
            decay_from=0.0,
        ),
        hardware=HardwareSettings(threads=1),
    )


def conv(levels: int) -> Config:
    """The conv family, for images: lower latents are feature maps, upper ones vectors.

    Args:
        levels: L.
    """
    return Config(
        # Small enough for one core.
        model=ModelSettings(levels=levels, family="conv", hidden=12, depth=1),
        discriminator=DiscriminatorSettings(width=64),
        # With feature maps the discriminator is the stronger player. So it is narrow, and both have the same rate.
        training=TrainingSettings(steps=10_000 * (levels + 1), batch_size=32),
        # The sleep phase has not been measured yet for feature maps.
        game=GameSettings(sleep_weights=0.0),
        optimiser=OptimiserSettings(learning_rate=4e-4, final_rate_share=0.1),
        hardware=HardwareSettings(threads=1),
    )


def mixed(levels: int) -> Config:
    """The mixed family, for images: latents are vectors, and the encoder has a few strided convolutions.

    Args:
        levels: L.
    """
    return override(dense(levels), {"model.family": "mixed"})


def fitting(levels: int, data_shape: Sequence[int], family: Family | None = None) -> Config:
    """The settings of a family.

    Args:
        levels: L.
        data_shape: ``(C, H, W)`` of images, ``(D,)`` of vectors.
        family: ``"dense"``, ``"conv"`` or ``"mixed"``; by default chosen from the shape, as in :func:`halikit.ladder`.
    """
    from halikit.networks.ladder import fitting_family

    return {"dense": dense, "conv": conv, "mixed": mixed}[family or fitting_family(data_shape)](levels)
