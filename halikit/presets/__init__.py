"""Presets: complete configs, each made by a function.

``ali_NAME``, ``vae_NAME`` and ``hvae_NAME`` are the baselines of the preset ``NAME``; see
:mod:`halikit.presets.baselines`. Each name is also a function of this module: ``presets.vae_digits()``.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from inspect import cleandoc
from typing import Any

from halikit.config import Config
from halikit.errors import InputError
from halikit.presets import paper
from halikit.presets.baselines import BASELINES
from halikit.presets.digits import digits, digits_conditional
from halikit.presets.mnist import mnist, mnist_conditional, mnist_semi, mnist_semi_best, mnist_supervised
from halikit.presets.paper import celeba64, celeba128, cifar10, imagenet128, svhn

__all__ = ["BASELINES", "PRESETS", "comments", "preset"]

_TITLES = {"ali": "ALI", "vae": "Variational autoencoder", "hvae": "Hierarchical variational autoencoder"}
# The presets that have baselines.
_HIERARCHIES = (digits, mnist, svhn, cifar10, celeba64, celeba128, imagenet128)


def _baseline(kind: str, hierarchy: Callable[[], Config]) -> Callable[[], Config]:
    def make() -> Config:
        return BASELINES[kind](hierarchy())

    make.__name__ = f"{kind}_{hierarchy.__name__}"
    make.__doc__ = f"{_TITLES[kind]} with the layers, steps and data of {hierarchy.__name__}."
    return make


PRESETS: dict[str, Callable[[], Config]] = {
    make.__name__: make
    for make in (
        *(
            digits,
            digits_conditional,
            mnist,
            mnist_conditional,
            mnist_semi,
            mnist_semi_best,
            mnist_supervised,
            svhn,
            cifar10,
            celeba64,
            celeba128,
            imagenet128,
        ),
        *(_baseline(kind, hierarchy) for kind in BASELINES for hierarchy in _HIERARCHIES),
    )
}


def __getattr__(name: str) -> Any:
    if name in PRESETS:
        return PRESETS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def preset(name: str) -> Config:
    """The preset of this name.

    Raises:
        InputError: If there is no such preset; the message suggests a similar name.
    """
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(PRESETS)}"
        raise InputError(f"there is no preset {name!r}; {hint}")
    return PRESETS[name]()


def comments(name: str) -> dict[str, str]:
    """Comments on a preset (under the name ``""``) and its settings, for :func:`halikit.config.to_toml`.

    Raises:
        InputError: If there is no such preset.
    """
    config = preset(name)
    sources = paper.sources(config) if config.model.family == "paper" else {}
    return {"": cleandoc(PRESETS[name].__doc__ or "")} | sources
