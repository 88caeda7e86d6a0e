"""Published settings: one function each, returning a complete config."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from inspect import cleandoc

from halikit.config import Config
from halikit.errors import InputError
from halikit.presets import paper
from halikit.presets.ali import (
    ali_celeba64,
    ali_celeba128,
    ali_cifar10,
    ali_digits,
    ali_imagenet128,
    ali_mnist,
    ali_svhn,
    joined,
)
from halikit.presets.digits import digits
from halikit.presets.mnist import mnist, mnist_semi, mnist_semi_best, mnist_supervised
from halikit.presets.paper import celeba64, celeba128, cifar10, imagenet128, svhn
from halikit.presets.vae import (
    autoencoder,
    hvae_celeba64,
    hvae_celeba128,
    hvae_cifar10,
    hvae_digits,
    hvae_imagenet128,
    hvae_mnist,
    hvae_svhn,
    vae_celeba64,
    vae_celeba128,
    vae_cifar10,
    vae_digits,
    vae_imagenet128,
    vae_mnist,
    vae_svhn,
)

__all__ = [
    "BASELINES",
    "PRESETS",
    "ali_celeba64",
    "ali_celeba128",
    "ali_cifar10",
    "ali_digits",
    "ali_imagenet128",
    "ali_mnist",
    "ali_svhn",
    "celeba64",
    "celeba128",
    "cifar10",
    "comments",
    "digits",
    "hvae_celeba64",
    "hvae_celeba128",
    "hvae_cifar10",
    "hvae_digits",
    "hvae_imagenet128",
    "hvae_mnist",
    "hvae_svhn",
    "imagenet128",
    "mnist",
    "mnist_semi",
    "mnist_semi_best",
    "mnist_supervised",
    "preset",
    "svhn",
    "vae_celeba64",
    "vae_celeba128",
    "vae_cifar10",
    "vae_digits",
    "vae_imagenet128",
    "vae_mnist",
    "vae_svhn",
]

PRESETS: dict[str, Callable[[], Config]] = {
    function.__name__: function
    for function in (
        digits,
        mnist,
        mnist_semi,
        mnist_semi_best,
        mnist_supervised,
        svhn,
        cifar10,
        celeba64,
        celeba128,
        imagenet128,
        ali_digits,
        ali_mnist,
        ali_svhn,
        ali_cifar10,
        ali_celeba64,
        ali_celeba128,
        ali_imagenet128,
        vae_digits,
        vae_mnist,
        vae_svhn,
        vae_cifar10,
        vae_celeba64,
        vae_celeba128,
        vae_imagenet128,
        hvae_digits,
        hvae_mnist,
        hvae_svhn,
        hvae_cifar10,
        hvae_celeba64,
        hvae_celeba128,
        hvae_imagenet128,
    )
}

# What the paper compares with, made of any settings.
BASELINES: dict[str, Callable[[Config], Config]] = {
    "ali": joined,
    "vae": lambda config: autoencoder(joined(config)),
    "hvae": autoencoder,
}


def comments(name: str) -> dict[str, str]:
    """What to say about a preset and its settings, by dotted name as :func:`halikit.config.to_toml` takes it.

    Raises:
        InputError: If there is no such preset.
    """
    config = preset(name)
    sources = paper.sources(config) if config.model.family == "paper" else {}
    return {"": cleandoc(PRESETS[name].__doc__ or "")} | sources


def preset(name: str) -> Config:
    """The preset of this name.

    Raises:
        InputError: If there is none, naming the nearest.
    """
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(PRESETS)}"
        raise InputError(f"there is no preset {name!r}; {hint}")
    return PRESETS[name]()
