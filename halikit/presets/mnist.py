"""MNIST: two levels, dense."""

from __future__ import annotations

from halikit.config import Config, DataConfig, DiscriminatorConfig, ModelConfig, TrainingConfig

__all__ = ["mnist"]


def mnist() -> Config:
    """Two dense levels on MNIST, sized for half an hour on two cores.

    The paper trains on MNIST semi-supervised only, and gives no layers: all settings are ours.
    """
    return Config(
        preset="mnist",
        model=ModelConfig(levels=2, data_shape=(1, 28, 28), family="dense", widths=(64, 32), hidden=512),
        discriminator=DiscriminatorConfig(family="dense", width=512, weight_norm=True),
        training=TrainingConfig(steps=20_000, discriminator_learning_rate=1.2e-3, final_learning_rate=0.1),
        data=DataConfig(spec="mnist:data/mnist"),
    )
