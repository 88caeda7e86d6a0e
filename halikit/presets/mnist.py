"""MNIST: two levels, convolutional."""

from __future__ import annotations

from halikit.config import Config, DataConfig, DiscriminatorConfig, ModelConfig, TrainingConfig

__all__ = ["mnist"]


def mnist() -> Config:
    """Two convolutional levels on MNIST, sized for half an hour on two cores.

    The paper trains on MNIST semi-supervised only, and gives no layers: all settings are ours.
    """
    return Config(
        preset="mnist",
        model=ModelConfig(levels=2, family="conv", hidden=16, depth=1),
        discriminator=DiscriminatorConfig(width=128, weight_norm=True),
        training=TrainingConfig(steps=12_000, batch_size=64, final_learning_rate=0.1),
        data=DataConfig(spec="mnist:data/mnist"),
    )
