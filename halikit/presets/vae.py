"""Variational autoencoders: kernels, steps and data of the other presets, trained on the evidence lower bound.

``vae_NAME`` has the one level of ``ali_NAME``, ``hvae_NAME`` the levels of ``NAME``. What belongs to the game is gone:
the discriminator and the noise on both inputs. So are gauge and cap, which the divergences replace, and growth.
``p(x|z_1)`` gains the scale that a density needs; it is fitted.
"""

from __future__ import annotations

from halikit.config import Config, override
from halikit.presets import ali, paper
from halikit.presets.digits import digits
from halikit.presets.mnist import mnist

__all__ = [
    "autoencoder",
    "hvae_celeba64",
    "hvae_celeba128",
    "hvae_cifar10",
    "hvae_digits",
    "hvae_imagenet128",
    "hvae_mnist",
    "hvae_svhn",
    "vae_celeba64",
    "vae_celeba128",
    "vae_cifar10",
    "vae_digits",
    "vae_imagenet128",
    "vae_mnist",
    "vae_svhn",
]


def vae_imagenet128() -> Config:
    """VAE on ImageNet at 128×128: the kernels of ali_imagenet128."""
    return autoencoder(ali.ali_imagenet128())


def vae_celeba128() -> Config:
    """VAE on CelebA at 128×128: the kernels of ali_celeba128."""
    return autoencoder(ali.ali_celeba128())


def vae_celeba64() -> Config:
    """VAE on CelebA at 64×64: the kernels of ali_celeba64."""
    return autoencoder(ali.ali_celeba64())


def vae_cifar10() -> Config:
    """VAE on CIFAR-10: the kernels of ali_cifar10."""
    return autoencoder(ali.ali_cifar10())


def vae_svhn() -> Config:
    """VAE on SVHN: the kernels of ali_svhn."""
    return autoencoder(ali.ali_svhn())


def vae_mnist() -> Config:
    """VAE on MNIST: the kernels of ali_mnist."""
    return autoencoder(ali.ali_mnist())


def vae_digits() -> Config:
    """VAE on scikit-learn's 8×8 digits: the kernels of ali_digits."""
    return autoencoder(ali.ali_digits())


def hvae_imagenet128() -> Config:
    """Hierarchical VAE on ImageNet at 128×128: the kernels of imagenet128."""
    return autoencoder(paper.imagenet128())


def hvae_celeba128() -> Config:
    """Hierarchical VAE on CelebA at 128×128: the kernels of celeba128."""
    return autoencoder(paper.celeba128())


def hvae_celeba64() -> Config:
    """Hierarchical VAE on CelebA at 64×64: the kernels of celeba64."""
    return autoencoder(paper.celeba64())


def hvae_cifar10() -> Config:
    """Hierarchical VAE on CIFAR-10: the kernels of cifar10."""
    return autoencoder(paper.cifar10())


def hvae_svhn() -> Config:
    """Hierarchical VAE on SVHN: the kernels of svhn."""
    return autoencoder(paper.svhn())


def hvae_mnist() -> Config:
    """Hierarchical VAE on MNIST: the kernels of mnist."""
    return autoencoder(mnist())


def hvae_digits() -> Config:
    """Hierarchical VAE on scikit-learn's 8×8 digits: the kernels of digits."""
    return autoencoder(digits())


def autoencoder(config: Config) -> Config:
    """The same kernels under the evidence lower bound."""
    kind = "vae" if config.model.levels == 1 else "hvae"
    changes = {
        "preset": config.preset and f"{kind}_{config.preset.removeprefix('ali_')}",
        "model.gauge": None,
        "model.max_scale": None,
        "model.observation_scale": "fitted",
        "training.method": "elbo",
    }
    return override(config, changes)
