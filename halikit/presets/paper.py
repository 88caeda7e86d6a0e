"""The paper's experiments. The settings that the paper does not give are ours.

:func:`sources` gives the source of every setting; ``halikit presets NAME`` prints the sources as comments.
"""

from __future__ import annotations

from halikit.config import (
    Config,
    DataSettings,
    DiscriminatorSettings,
    GameSettings,
    ModelSettings,
    OptimiserSettings,
    TrainingSettings,
)
from halikit.settings import Section

__all__ = ["celeba64", "celeba128", "cifar10", "imagenet128", "sources", "svhn"]

_BATCH = 100


def imagenet128() -> Config:
    """ImageNet at 128×128: Table 4, two levels."""
    return _experiment("imagenet128", "imagenet:data/imagenet", side=128, samples=1_281_167, epochs=16)


def celeba128() -> Config:
    """CelebA at 128×128: Table 4, two levels."""
    return _experiment("celeba128", "celeba:data/celeba", side=128, samples=162_770, epochs=123)


def celeba64() -> Config:
    """CelebA at 64×64, two levels: latent shapes from the paper, layers of Table 4 adapted to this size."""
    return _experiment("celeba64", "celeba:data/celeba", side=64, samples=162_770, epochs=123)


def cifar10() -> Config:
    """CIFAR-10, two levels: latent shapes from the paper, layers of Table 4 adapted to this size."""
    return _experiment("cifar10", "cifar10:data/cifar10", side=32, samples=45_000, epochs=1000)


def svhn() -> Config:
    """SVHN, two levels: latent shapes from the paper, layers of Table 4 adapted to this size."""
    return _experiment("svhn", "svhn:data/svhn", side=32, samples=65_932, epochs=100)


def _experiment(name: str, data: str, *, side: int, samples: int, epochs: int) -> Config:
    """The config of an experiment of the paper.

    Args:
        name: Name of the preset.
        data: Data spec.
        side: Side of the images in pixels.
        samples: Number of training images.
        epochs: Number of passes over the training images.
    """
    return Config(
        preset=name,
        model=ModelSettings(
            levels=2, family="paper", data_shape=(3, side, side), gauge=None, max_scale=None, initial_scale=0.01
        ),
        discriminator=DiscriminatorSettings(
            family="paper", weight_norm=True, input_noise=0.2, slope=0.02, initial_scale=0.01
        ),
        training=TrainingSettings(steps=epochs * (samples // _BATCH), batch_size=_BATCH, encoder_noise=0.2),
        game=GameSettings(sleep_weights=0.0),
        optimiser=OptimiserSettings(learning_rate=1e-4, betas=(0.5, 0.999)),
        data=DataSettings(spec=data, size=side),
    )


_ALI = "ours: as in the released code of ALI; the paper does not say"
_IDLE = "ours: without effect here"
_OURS = "ours"

_SOURCES = {
    "preset": "",
    "model.levels": "paper, section 4",
    "model.slope": 'ours: as in the released code of ALI on CelebA; the paper says "leaky"',
    "model.gauge": "paper: it has none",
    "model.max_scale": "paper: it has none",
    "model.observation_scale": "paper, Table 4: tanh and no Gaussian layer, so p(x|z1) is deterministic",
    "model.rectified": "paper, Table 4, at its word; false leaves the Gaussian layers' means and scales linear",
    "model.initial_scale": _ALI,
    "discriminator.weight_norm": "paper, Table 4",
    "discriminator.input_noise": "paper, section 4",
    "discriminator.slope": 'ours: as in the released code of ALI on CelebA; the paper says "leaky"',
    "discriminator.initial_scale": _ALI,
    "labels": "paper, Algorithm 1: it uses none",
    "training.method": "paper, Algorithm 1",
    "training.batch_size": _ALI,
    "game.objective": "paper, Algorithm 1",
    "optimiser.learning_rate": _ALI,
    "optimiser.discriminator_learning_rate": _ALI,
    "optimiser.betas": _ALI,
    "optimiser.final_rate_share": _ALI,
    "optimiser.decay_from": _IDLE,
    "training.encoder_noise": "paper, section 4",
    "game.final_input_noise": "paper, section 4: one standard deviation throughout",
    "game.discriminator_steps": "paper, Algorithm 1",
    "game.generator_steps": "paper, Algorithm 1",
    "game.sleep_weights": "paper: it has none",
    "game.gradient_penalty": "paper: it has none",
    "game.cycle_weight": "paper: it has none",
    "game.elbo_weight": "paper: it has none",
    "game.penalty_every": _IDLE,
    "game.penalised_joint": _IDLE,
    "training.ema_decay": "ours: for looking at the model; the game does not see the averages",
    "data.size": "paper, section 4; how images are cropped to squares is ours",
    "data.spec": "paper, section 4; the place is ours",
}

_EPOCHS = {
    "celeba": "ours: 123 epochs of 162,770 images, as in the released code of ALI",
    "cifar10": "ours: 1000 epochs of 45,000 images; the released code of ALI has 6475, an earlier state of it 1000",
    "imagenet": "ours: 16 epochs of 1,281,167 images, about as many steps as CelebA has; there is no source for it",
    "svhn": "ours: 100 epochs of 65,932 images, as in the released code of ALI",
}


def sources(config: Config) -> dict[str, str]:
    """The source of each setting of a preset, by dotted name: the place in the paper, or "ours" with the reason.

    Args:
        config: A preset of this module, or a baseline made from one.
    """
    model, dataset = config.model, config.data.spec.partition(":")[0]
    large = model.data_shape is not None and model.data_shape[-1] == 128
    table = "paper, Table 4" if large else "ours: Table 4, read for this size; the paper gives the latents' shapes"
    varying = {
        "model.data_shape": "paper, Table 4" if large else "paper, section 4",
        "model.family": table,
        "discriminator.family": table,
        "training.steps": _EPOCHS[dataset],
    }
    if dataset == "celeba" and not large:
        reason = "ours: section 4 gives z1 16×16 on CelebA, Table 4 32×32 at 128×128; so this is 64×64"
        varying |= {"model.data_shape": reason, "data.size": reason}
    if model.levels == 1:
        joined = "ours: the networks of two levels joined, without z1"
        varying |= {"model.levels": "paper: ALI has one", "model.family": joined, "discriminator.family": joined}
    if config.training.method == "elbo":
        varying |= {
            "model.observation_scale": "ours: the paper does not say what its VAE has",
            "training.method": "paper, sections 5.2 and 7.1: VAE, a baseline",
        }
    settings = {
        f"{section}.{name}": _OURS
        for section, table in config
        if isinstance(table, Section)
        for name in table.applicable
    }
    return settings | _SOURCES | varying
