"""MNIST: two dense levels, and one level under the classes for training with few labels."""

from __future__ import annotations

from halikit.config import (
    Config,
    DataSettings,
    DiscriminatorSettings,
    GameSettings,
    HardwareSettings,
    LabelSettings,
    ModelSettings,
    OptimiserSettings,
    TrainingSettings,
    override,
)

__all__ = ["mnist", "mnist_conditional", "mnist_semi", "mnist_semi_best", "mnist_supervised"]


def mnist() -> Config:
    """Two dense levels on MNIST; trains in half an hour on two cores.

    The paper uses MNIST in semi-supervised training only, and does not describe its layers. All settings are ours.
    """
    return Config(
        preset="mnist",
        model=ModelSettings(levels=2, data_shape=(1, 28, 28), family="dense", widths=(64, 32), hidden=512),
        discriminator=DiscriminatorSettings(family="dense", width=512, weight_norm=False),
        training=TrainingSettings(steps=20_000),
        optimiser=OptimiserSettings(
            learning_rate=2e-4, discriminator_learning_rate=8e-4, final_rate_share=0.1, decay_from=0.0
        ),
        data=DataSettings(spec="mnist:data/mnist"),
    )


def mnist_conditional() -> Config:
    """The preset mnist, with all networks given the class of each digit. All settings are ours."""
    changes = {"preset": "mnist_conditional", "model.conditional": "labels", "model.context_size": 10}
    return override(mnist(), changes)


def mnist_semi() -> Config:
    """MNIST with 100 labels (Table 3): one level under the classes, with a convolutional encoder.

    The paper gives the losses (Eqs. 9 and 10), that there is noise on the encoder's input, and the number of labels,
    which we read as 100 in total. Layers and all other settings are ours, and so are the sleep phase and the
    reconstruction of x from z1, without which the discriminator wins. There is no augmentation and no pseudo-label.
    The settings were chosen by the error on the validation digits, so the labels of these digits were used too.
    """
    return Config(
        preset="mnist_semi",
        model=ModelSettings(levels=1, data_shape=(1, 28, 28), family="mixed", widths=(32,), hidden=256, classes=10),
        discriminator=DiscriminatorSettings(family="dense", width=256),
        training=TrainingSettings(steps=3_000, batch_size=100, encoder_noise=0.8),
        game=GameSettings(sleep_weights=1.0, cycle_weight=(3.0, 0.0)),
        optimiser=OptimiserSettings(learning_rate=1e-3, final_rate_share=0.1),
        labels=LabelSettings(number=100, weight=20.0),
        hardware=HardwareSettings(threads=1),
        data=DataSettings(spec="mnist:data/mnist"),
    )


def mnist_semi_best() -> Config:
    """MNIST with 100 labels, with methods beyond the paper: augmentation, consistency and pseudo-labels.

    The batch of the consistency loss is larger than that of the game, so training takes longer. The loss uses only
    pseudo-labels that agree with label propagation over the latents. The settings were chosen by the error on the
    validation digits, so the labels of these digits were used too.
    """
    changes = {
        "preset": "mnist_semi_best",
        "training.steps": 8_000,
        "training.batch_size": 64,
        "optimiser.learning_rate": 2e-3,
        "optimiser.final_rate_share": 0.02,
        "optimiser.decay_from": 0.3,
        "training.encoder_noise": 0.3,
        "game.sleep_weights": 0.0,
        "game.cycle_weight": 0.0,
        "labels.consistency_weight": 1.0,
        "labels.consistency_batch_size": 300,
        "labels.pseudo_label_threshold": 0.8,
        "labels.propagate_every": 1_000,
        "data.shift": 2,
        "data.rotate": 15.0,
        "data.zoom": 0.15,
        "data.warp": 1.0,
    }
    return override(mnist_semi(), changes)


def mnist_supervised() -> Config:
    """The encoder of mnist_semi, trained on its 100 labels alone, for comparison."""
    changes = {"preset": "mnist_supervised", "training.method": "supervised", "training.steps": 1_000}
    return override(mnist_semi(), changes)
