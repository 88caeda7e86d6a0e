"""Families: settings for any number of levels on any data."""

from __future__ import annotations

from halikit.config import Config, DiscriminatorConfig, ModelConfig, TrainingConfig

__all__ = ["automatic", "conv", "dense"]


def dense(levels: int) -> Config:
    """Latents are vectors: for vectors and small images.

    Args:
        levels: L.
    """
    return Config(
        model=ModelConfig(levels=levels, family="dense"),
        discriminator=DiscriminatorConfig(weight_norm=True),
        training=TrainingConfig(
            # A stack that grows must not hurry: stages get longer as they get more.
            steps=max(9_500, 600 * levels * (levels + 1)),
            learning_rate=4e-4,
            # The slower player is the discriminator: at equal rates the latents couple far less.
            discriminator_learning_rate=1.6e-3,
            final_learning_rate=0.1,
            threads=1,
        ),
    )


def conv(levels: int) -> Config:
    """Latents are feature maps below and vectors on top: for images.

    Args:
        levels: L.
    """
    return Config(
        model=ModelConfig(levels=levels, family="conv"),
        discriminator=DiscriminatorConfig(weight_norm=True),
        training=TrainingConfig(steps=10_000 * (levels + 1), batch_size=64, final_learning_rate=0.1),
    )


def automatic(levels: int) -> Config:
    """Whichever fits the data, decided once their shape is known; the settings of :func:`conv`.

    Args:
        levels: L.
    """
    config = conv(levels)
    return config.model_copy(update={"model": config.model.model_copy(update={"family": None})})
