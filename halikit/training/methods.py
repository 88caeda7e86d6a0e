"""What a step of training is: the game of Algorithm 1, or descent on the evidence lower bound."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from halikit.algorithm import Joints, Judges, Step, play, supports_single_pass
from halikit.config import TrainingConfig
from halikit.elbo import Bound, NegativeElbo, check_trains_by_elbo, descend_elbo, negative_elbo
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.model import Model
from halikit.objectives import OBJECTIVES
from halikit.random import seeded
from halikit.training.processes import Processes
from halikit.training.schedule import Schedule

__all__ = ["Elbo", "Game", "Method", "make_method"]


class Method(ABC):
    """One way to train a model; owns no optimisers.

    Attributes:
        columns: What :meth:`step` returns, in this order, as records name it.
        single_pass: Whether one backward pass serves two players.
        reason: What a step is, in words.
        grows: Whether the stack can be trained from the data up.
    """

    columns: tuple[str, ...]
    single_pass = False
    reason: str
    grows = True

    @abstractmethod
    def stand(self, level: int) -> None:
        """Let the first ``level`` levels train from now on."""

    @abstractmethod
    def step(self, x: Tensor, step: int, schedule: Schedule) -> Step | Bound:
        """Add the gradients of step ``step``, counted from 0, on a batch ``(n, *shape of x)`` to ``.grad``."""

    def measure(self, averaged: Hierarchy, x: Tensor) -> dict[str, float]:
        """What to record of held-out data, by name, beside the errors; the hierarchy is in evaluation mode."""
        return {}

    def rest(self) -> None:  # noqa: B027 (most methods change nothing that they would have to give back)
        """Leave the model as it is to be used."""


class Game(Method):
    """Algorithm 1.

    Args:
        model: With a discriminator, on the device where it trains.
        settings: Of the game.
        processes: Those that play it together.

    Raises:
        InputError: If there is no discriminator, or it cannot grow as the settings have it.
    """

    columns = ("d_loss", "g_loss", "rho_q", "rho_p")

    def __init__(self, model: Model, settings: TrainingConfig, processes: Processes) -> None:
        if model.discriminator is None:
            raise InputError("the game needs a discriminator: pass one to hk.Model, or set training.method to 'elbo'")
        self.settings = settings
        self._processes = processes
        self.objective = OBJECTIVES[settings.objective]
        self._whole = model.hierarchy, model.discriminator
        self.grows = model.discriminator.grows
        self._input_noises = [game.noise.scale for game in model.discriminator.games]
        if not self.grows and isinstance(settings.grow_every, int):
            raise InputError("grow_every is set, but the discriminator has no adapters and cannot grow with the stack")
        self.single_pass, self.reason = self._examined()

    def stand(self, level: int) -> None:
        """The first levels of both players."""
        hierarchy, discriminator = self._whole
        self._hierarchy, self._discriminator = hierarchy[:level], discriminator[:level]
        # Of the adapters, each level uses its own alone.
        idle = any(len(game.adapters or ()) > 1 for game in self._discriminator.games)
        self._draw = self._processes.wrap(Joints(self._hierarchy))
        self._judge = self._processes.wrap(Judges(self._discriminator), has_idle_parameters=idle)

    def step(self, x: Tensor, step: int, schedule: Schedule) -> Step:
        """One step of Algorithm 1, at the noise of its place in the schedule."""
        for game, first in zip(self._whole[1].games, self._input_noises, strict=True):
            game.noise.scale = schedule.input_noise(first, step) if first else 0.0
        settings = self.settings
        return play(
            self._hierarchy,
            self._discriminator,
            x,
            objective=self.objective,
            players=schedule.players(step),
            single_pass=self.single_pass,
            encoder_noise=settings.encoder_noise,
            penalty=settings.gradient_penalty,
            penalised=settings.penalised,
            draw=self._draw,
            judge=self._judge,
        )

    def rest(self) -> None:
        """Give the discriminator its input noise back."""
        for game, first in zip(self._whole[1].games, self._input_noises, strict=True):
            game.noise.scale = first

    def _examined(self) -> tuple[bool, str]:
        """Whether one backward pass serves both players at every level that will play, and why."""
        settings = self.settings
        if settings.d_steps != 1 or settings.g_steps != 1:
            return False, f"rounds of {settings.d_steps} discriminator and {settings.g_steps} generator steps"
        hierarchy, discriminator = self._whole
        training = hierarchy.training
        hierarchy.eval()
        with seeded(0, hierarchy.prior.device), torch.no_grad():
            states = hierarchy.sample_states(4)
        hierarchy.train(training)
        grown = self.grows and settings.growth(len(hierarchy))
        for level in range(1, len(hierarchy) + 1) if grown else [len(hierarchy)]:
            possible, reason = supports_single_pass(discriminator[:level], self.objective, states)
            if not possible:
                break
        return possible, reason


class Elbo(Method):
    """Descent on the evidence lower bound; see :mod:`halikit.elbo`.

    Args:
        model: All kernels with densities, none with a gauge.
        processes: Those that train it together.

    Raises:
        InputError: If they are not so.
    """

    columns = ("negative_elbo",)
    reason = "descent on the evidence lower bound"

    def __init__(self, model: Model, processes: Processes) -> None:
        check_trains_by_elbo(model.hierarchy)
        self._whole = model.hierarchy
        self._processes = processes

    def stand(self, level: int) -> None:
        """The first levels, under a standard normal prior."""
        self._hierarchy = self._whole[:level]
        self._bound = self._processes.wrap(NegativeElbo(self._hierarchy))

    def step(self, x: Tensor, step: int, schedule: Schedule) -> Bound:
        """One step of descent."""
        return descend_elbo(self._hierarchy, x, bound=self._bound)

    def measure(self, averaged: Hierarchy, x: Tensor) -> dict[str, float]:
        """The bound on held-out data, with running statistics."""
        return {"held_out_negative_elbo": float(negative_elbo(averaged, x))}


def make_method(model: Model, settings: TrainingConfig, processes: Processes) -> Method:
    """The method that the settings name.

    Raises:
        InputError: If the model cannot be trained by it.
    """
    return Elbo(model, processes) if settings.method == "elbo" else Game(model, settings, processes)
