"""ALI, the case of one level, on the budgets of the hierarchies: as many steps, and the same layers.

The paper compares with ALI and does not say with which networks. Here a preset ``ali_NAME`` is the preset ``NAME`` with
its levels' networks joined end to end: what ``z_1 … z_{L−1}`` were is hidden, and ``z_1`` now is what ``z_L`` was.
"""

from __future__ import annotations

from halikit.config import Config, ModelConfig, override
from halikit.presets import digits as of_digits
from halikit.presets import mnist as of_mnist
from halikit.presets import paper

__all__ = [
    "ali_celeba64",
    "ali_celeba128",
    "ali_cifar10",
    "ali_digits",
    "ali_imagenet128",
    "ali_mnist",
    "ali_svhn",
    "joined",
]


def ali_imagenet128() -> Config:
    """ALI on ImageNet at 128×128: Table 4 without z1."""
    return joined(paper.imagenet128())


def ali_celeba128() -> Config:
    """ALI on CelebA at 128×128: Table 4 without z1."""
    return joined(paper.celeba128())


def ali_celeba64() -> Config:
    """ALI on CelebA at 64×64: the networks of celeba64 without z1."""
    return joined(paper.celeba64())


def ali_cifar10() -> Config:
    """ALI on CIFAR-10: the networks of cifar10 without z1."""
    return joined(paper.cifar10())


def ali_svhn() -> Config:
    """ALI on SVHN: the networks of svhn without z1."""
    return joined(paper.svhn())


def ali_mnist() -> Config:
    """ALI on MNIST: the layers of mnist, in one level."""
    return joined(of_mnist.mnist())


def ali_digits() -> Config:
    """ALI on scikit-learn's 8×8 digits: the layers of digits, in one level."""
    return joined(of_digits.digits())


def joined(config: Config) -> Config:
    """ALI for a config of several levels: one level with the networks of all of them, end to end.

    Args:
        config: With the shape of its data.
    """
    model = config.model
    changes: dict[str, object] = {"model.levels": 1, "preset": config.preset and f"ali_{config.preset}"}
    if model.family != "paper":
        changes["model.maps"] = 0
        if model.family != "conv":  # there each halving has its layers, in however many levels they are
            changes["model.depth"] = model.levels * model.depth
        # The widths of a stack depend on its levels, so the top's is written out.
        changes["model.widths"] = (model.widths or _widths(model))[-1:]
    if isinstance(config.training.sleep, tuple):  # one weight for each of the levels that were
        changes["training.sleep"] = "auto"
    return override(config, changes)


def _widths(model: ModelConfig) -> tuple[int, ...]:
    from halikit.networks.ladder import ladder_choices

    assert model.data_shape is not None
    widths: tuple[int, ...] = ladder_choices(model.levels, model.data_shape, family=model.family)["widths"]  # type: ignore[arg-type]
    return widths
