"""The baselines of the paper, derived from the settings of a hierarchy: ALI, VAE and hierarchical VAE.

The paper does not describe the networks of its baselines. Here they have the layers, the steps and the data of the
hierarchy.
"""

from __future__ import annotations

from collections.abc import Callable

from halikit.config import Config, ModelSettings, override
from halikit.networks.ladder import ladder_choices

__all__ = ["BASELINES", "ali", "hvae", "vae"]


def ali(config: Config) -> Config:
    """ALI, the game with one level, whose networks are those of all levels joined.

    The lower latents become hidden layers, and ``z_1`` has the size of ``z_L``.

    Args:
        config: Settings of the hierarchy, with ``model.data_shape``.
    """
    model = config.model
    changes: dict[str, object] = {"preset": config.preset and f"ali_{config.preset}", "model.levels": 1}
    if model.family != "paper":
        changes["model.maps"] = 0
        if model.family != "conv":  # conv networks have layers for each halving, not for each level
            changes["model.depth"] = model.levels * (model.depth or 2)
        # Default widths depend on the number of levels, so the width of the top latent must be set.
        changes["model.widths"] = (model.widths or _widths(model))[-1:]
    if isinstance(config.game.sleep_weights, tuple):  # one weight for each level of the hierarchy
        changes["game.sleep_weights"] = "auto"
    return override(config, changes)


def vae(config: Config) -> Config:
    """The variational autoencoder with one level: the networks of :func:`ali`, trained by the evidence lower bound."""
    return _autoencoder(ali(config), config.preset and f"vae_{config.preset}")


def hvae(config: Config) -> Config:
    """The hierarchical variational autoencoder: the networks of ``config``, trained by the evidence lower bound."""
    return _autoencoder(config, config.preset and f"hvae_{config.preset}")


BASELINES: dict[str, Callable[[Config], Config]] = {"ali": ali, "vae": vae, "hvae": hvae}


def _autoencoder(config: Config, name: str | None) -> Config:
    """The same networks, trained by the evidence lower bound without a discriminator.

    The divergences replace the gauge and the upper bound of the scales. The scale of ``p(x|z_1)`` is fitted, because
    the kernel needs a density.
    """
    changes = {
        "preset": name,
        "model.gauge": None,
        "model.max_scale": None,
        "model.observation_scale": "fitted",
        "training.method": "elbo",
    }
    return override(config, changes)


def _widths(model: ModelSettings) -> tuple[int, ...]:
    assert model.data_shape is not None
    widths: tuple[int, ...] = ladder_choices(model.levels, model.data_shape, family=model.family)["widths"]  # type: ignore[arg-type]
    return widths
