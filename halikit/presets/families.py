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
    from halikit.networks.shapes import Family

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


def conv(levels: int, *, steep: bool = False) -> Config:
    """The conv family, for images: lower latents are feature maps, upper ones vectors.

    Args:
        levels: L.
        steep: Whether there are fewer levels than :func:`~halikit.networks.shapes.fitting_levels` recommends. The top
            vector is then far smaller than the maps below it. It couples better if the noise on latents falls to zero
            and the sleep phase takes running statistics.
    """
    return Config(
        model=ModelSettings(levels=levels, family="conv", slope=0.2, latent_noise=0.4),
        # Penalties keep the discriminator from winning, in place of dropout, noise and normalisation.
        discriminator=DiscriminatorSettings(dropout=0.0, weight_norm=False, input_noise=0.0),
        training=TrainingSettings(steps=8_000, batch_size=32, encoder_noise=0.2),
        game=GameSettings(
            objective="relativistic",
            gradient_penalty=1.0,
            penalised_joint="both",
            penalty_every=4,
            latent_noise_until=0.6 if steep else None,
            sleep_statistics="running" if steep else "batch",
        ),
        optimiser=OptimiserSettings(learning_rate=4e-4, final_rate_share=0.1, decay_from=0.3),
        hardware=HardwareSettings(threads=1),
    )


def mixed(levels: int) -> Config:
    """The mixed family, for images: latents are vectors, and the encoder has a few strided convolutions.

    Args:
        levels: L.
    """
    return override(dense(levels), {"model.family": "mixed"})


def fitting(levels: int | None, data_shape: Sequence[int], family: Family | None = None) -> Config:
    """The settings of a family.

    Args:
        levels: L; by default that of :func:`halikit.networks.shapes.fitting_levels`.
        data_shape: ``(C, H, W)`` of images, ``(D,)`` of vectors.
        family: ``"dense"``, ``"conv"`` or ``"mixed"``; by default chosen from the shape, as in :func:`halikit.ladder`.
    """
    from halikit.networks.shapes import fitting_family, fitting_levels

    family = family or fitting_family(data_shape)
    recommended = fitting_levels(data_shape, family)
    if family == "conv":
        return conv(levels or recommended, steep=levels is not None and levels < recommended)
    return {"dense": dense, "mixed": mixed}[family](levels or recommended)
