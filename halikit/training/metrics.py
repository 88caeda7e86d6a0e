"""The metrics that a training measures, by name: checked before it begins."""

from __future__ import annotations

from collections.abc import Sequence

from halikit.config import Config
from halikit.errors import InputError
from halikit.model import Model
from halikit.runs.record import PER_LEVEL
from halikit.training.method import Method

__all__ = ["check_metric", "latents_of"]


def latents_of(model: Model) -> list[str]:
    """Names of the latents, from level 1 up."""
    return [space.name for space in model.hierarchy.spaces[1:]]


def check_metric(name: str, place: str, config: Config, model: Model, method: Method) -> None:
    """Check that a training measures a metric.

    Args:
        name: See :func:`halikit.runs.record.metric_of`.
        place: Where the name was given, for the message.
        config: The settings.
        model: The model.
        method: The method of the training.

    Raises:
        InputError: If it does not; the message lists what it measures.
    """
    known = ["auto", *_measured(config, method)]
    kinds: Sequence[str] = ()
    if method.trains_decoder:
        has_features = model.discriminator is not None and model.discriminator.has_features
        kinds = [kind for kind in PER_LEVEL.values() if kind != "embedded" or has_features]
    if name not in [*known, *kinds, *(f"{kind}_{latent}" for kind in kinds for latent in latents_of(model))]:
        levels = f", and {', '.join(kinds)}, alone or with a level as in {kinds[0]}_z1" if kinds else ""
        raise InputError(f"{place} = {name!r} is not measured in this training; it measures {', '.join(known)}{levels}")


def _measured(config: Config, method: Method) -> list[str]:
    """Losses, and the method's own measures on held-out data."""
    held_out = ["held_out_label_error"] if config.labels else []
    held_out += ["held_out_negative_elbo"] if config.training.method == "elbo" else []
    return [*method.columns, *held_out]
