"""MNIST: two levels, dense; and one level with the classes on top, for few labels."""

from __future__ import annotations

from halikit.config import Config, DataConfig, DiscriminatorConfig, ModelConfig, TrainingConfig, override

__all__ = ["mnist", "mnist_semi", "mnist_semi_best", "mnist_supervised"]


def mnist() -> Config:
    """Two dense levels on MNIST, sized for half an hour on two cores.

    The paper trains on MNIST semi-supervised only, and gives no layers: all settings are ours.
    """
    return Config(
        preset="mnist",
        model=ModelConfig(levels=2, data_shape=(1, 28, 28), family="dense", widths=(64, 32), hidden=512),
        discriminator=DiscriminatorConfig(family="dense", width=512),
        training=TrainingConfig(
            steps=20_000,
            learning_rate=2e-4,
            discriminator_learning_rate=8e-4,
            final_learning_rate=0.1,
            decay_from=0.0,
        ),
        data=DataConfig(spec="mnist:data/mnist"),
    )


def mnist_semi() -> Config:
    """MNIST with 100 labels (Table 3): one dense level, and the classes above it.

    The paper gives the losses (Eqs. 9 and 10), the noise on the encoder's input and the number of labels, 100 in all
    as we read it; layers and all other settings are ours.
    """
    return Config(
        preset="mnist_semi",
        model=ModelConfig(levels=1, data_shape=(1, 28, 28), family="dense", widths=(32,), hidden=256, classes=10),
        discriminator=DiscriminatorConfig(family="dense", width=256, weight_norm=True),
        training=TrainingConfig(
            steps=10_000,
            batch_size=100,
            learning_rate=1e-3,
            final_learning_rate=0.1,
            encoder_noise=0.3,
            sleep=0.0,
            labels=100,
            supervised_weight=20.0,
            threads=1,
        ),
        data=DataConfig(spec="mnist:data/mnist"),
    )


def mnist_semi_best() -> Config:
    """MNIST with 100 labels by more than the paper has: augmented images, and consistency of their classes.

    The encoder is convolutional; the consistency looks at more images than the game plays on, which costs more, and
    asks no class that the graph of the latents denies. Its settings were chosen on validation digits, whose labels are
    labels too.
    """
    changes = {
        "preset": "mnist_semi_best",
        "model.family": "mixed",
        "discriminator.family": "dense",
        "training.steps": 8_000,
        "training.batch_size": 64,
        "training.learning_rate": 2e-3,
        "training.final_learning_rate": 0.02,
        "training.decay_from": 0.3,
        "training.encoder_noise": 0.3,
        "training.consistency": 1.0,
        "training.consistency_batch": 300,
        "training.consistency_threshold": 0.8,
        "training.consistency_graph": 1_000,
        "data.shift": 2,
        "data.rotate": 15.0,
        "data.zoom": 0.15,
        "data.warp": 1.0,
    }
    return override(mnist_semi(), changes)


def mnist_supervised() -> Config:
    """The encoder of mnist_semi on its 100 labels alone: what the game has to beat."""
    changes = {"preset": "mnist_supervised", "training.method": "supervised", "training.steps": 2000}
    return override(mnist_semi(), changes)
