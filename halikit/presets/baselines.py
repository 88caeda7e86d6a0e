"""The baselines of the paper, derived from the settings of a hierarchy: ALI, VAE and hierarchical VAE.

The paper compares with them and does not say with which networks. Here they have the layers, the steps and the data of
the hierarchy.
"""

from __future__ import annotations

from collections.abc import Callable

from halikit.config import Config, ModelSettings, override
from halikit.networks.ladder import ladder_choices

__all__ = ["BASELINES", "ali", "hvae", "vae"]


def ali(config: Config) -> Config:
    """ALI, the game with one level: the networks of all levels joined end to end.

    The latents between become hidden layers, and ``z_1`` has the size of ``z_L``.

    Args:
        config: Settings with the shape of the data.
    """
    model = config.model
    changes: dict[str, object] = {"preset": config.preset and f"ali_{config.preset}", "model.levels": 1}
    if model.family != "paper":
        changes["model.maps"] = 0
        if model.family != "conv":  # there each halving has its layers, however many levels it lies in
            changes["model.depth"] = model.levels * model.depth
        # The widths of a stack depend on its levels, so the width of the top is written out.
        changes["model.widths"] = (model.widths or _widths(model))[-1:]
    if isinstance(config.game.sleep_weights, tuple):  # one weight for each of the levels that were joined
        changes["game.sleep_weights"] = "auto"
    return override(config, changes)


def vae(config: Config) -> Config:
    """The variational autoencoder of one level: the networks of :func:`ali`, trained on the evidence lower bound."""
    return _autoencoder(ali(config), config.preset and f"vae_{config.preset}")


def hvae(config: Config) -> Config:
    """The hierarchical variational autoencoder: the same networks, trained on the evidence lower bound."""
    return _autoencoder(config, config.preset and f"hvae_{config.preset}")


BASELINES: dict[str, Callable[[Config], Config]] = {"ali": ali, "vae": vae, "hvae": hvae}


def _autoencoder(config: Config, name: str | None) -> Config:
    """The same kernels under the evidence lower bound, without discriminator and noise.

    Gauge and cap go: the divergences replace them. ``p(x|z_1)`` gains the scale that a density needs; it is fitted.
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
