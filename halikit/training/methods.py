"""The choice of the method of training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from halikit.config import Config
from halikit.data import Augmentation, DataSet, OwnAugmentation
from halikit.errors import InputError
from halikit.hardware.hardware import Hardware
from halikit.hierarchy import Hierarchy
from halikit.model import Model
from halikit.objectives import Objective
from halikit.runs.record import columns
from halikit.training.cycle import cycle_consistency, evidence_bound
from halikit.training.elbo import ElboMethod
from halikit.training.extra_losses import ExtraLoss, check_names
from halikit.training.game import GameMethod
from halikit.training.labels import LabelsMethod, supervision_for
from halikit.training.method import Method
from halikit.training.sleep import sleep_phase

__all__ = ["make_method"]


def make_method(
    model: Model,
    config: Config,
    data: DataSet | None,
    augmentation: Augmentation | OwnAugmentation,
    teacher: Hierarchy,
    hardware: Hardware,
    extra_losses: Sequence[ExtraLoss],
    objective: Objective | None = None,
    context: Tensor | None = None,
) -> Method:
    """The method that the settings name.

    Args:
        model: The model, on the device where it trains.
        config: The settings, with the weights of the sleep phase resolved.
        data: The data set, on that device.
        augmentation: Augmentation of labelled images.
        teacher: The hierarchy with averaged weights.
        hardware: Where the training runs.
        extra_losses: Losses of the user.
        objective: Objective of the user, for the game.
        context: Some rows of a context, if the model takes one and any are known.

    Raises:
        InputError: If the model or the data cannot be trained by the method, or the name of an extra loss is taken.
    """
    check_names(extra_losses, columns([space.name for space in model.hierarchy.spaces[1:]], ()))
    if config.training.method == "elbo":
        if extra_losses:
            raise InputError("extra losses go with the game of Algorithm 1, not with training.method = 'elbo'")
        return ElboMethod(model)
    supervision = None
    if config.labels is not None:
        supervision = supervision_for(model, config, data, augmentation, teacher, hardware.processes)
    if config.training.method == "supervised":
        assert supervision
        if extra_losses:
            raise InputError("extra losses go with the game of Algorithm 1, not with training.method = 'supervised'")
        return LabelsMethod(model, supervision)
    losses = list(extra_losses)
    if supervision and config.labels:
        cost = ExtraLoss(supervision, "encoder", "supervised_loss", config.labels.weight, samples="unused")
        losses.insert(0, cost)
    losses = [*_built_in(config, model.hierarchy), *losses]
    measure = supervision.measure if supervision else None
    return GameMethod(
        model, config, losses, objective=objective, context=context, measure=measure, on_notice=hardware.notify
    )


def _built_in(config: Config, hierarchy: Hierarchy) -> list[ExtraLoss]:
    """The extra losses that the settings of the game name."""
    game, losses = config.game, []
    if isinstance(game.sleep_weights, tuple) and any(game.sleep_weights):
        noise, is_running = config.training.encoder_noise, game.sleep_statistics == "running"
        losses.append(sleep_phase(game.sleep_weights, noise, running_statistics=is_running))
    if game.cycle_weight != 0:
        losses.append(cycle_consistency(hierarchy, game.cycle_weight))
    if game.elbo_weight:
        losses.append(evidence_bound(hierarchy, game.elbo_weight))
    return losses
