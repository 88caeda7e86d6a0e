"""What a step of training is: the game of Algorithm 1, with labels or without, or descent on a loss in its place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from halikit.algorithm import Joints, Judges, Players, Step, play, supports_single_pass, unsynchronised
from halikit.config import TrainingConfig
from halikit.data import Augmentation, DataSet, Split, order
from halikit.elbo import Bound, NegativeElbo, check_trains_by_elbo, descend_elbo, negative_elbo
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.model import Model
from halikit.modes import evaluating
from halikit.objectives import OBJECTIVES
from halikit.random import seeded
from halikit.sleep import sleep_weights
from halikit.supervision import (
    Graph,
    Shares,
    Supervised,
    choose_labelled,
    class_kernel,
    classify,
    guess,
    propagate,
    supervise,
)
from halikit.training.captured import Captured
from halikit.training.processes import Processes
from halikit.training.schedule import Schedule

__all__ = ["Elbo", "Game", "LabelsAlone", "Method", "Outcome", "SupervisedGame", "SupervisedStep", "make_method"]


class SupervisedStep(NamedTuple):
    """What one step of the game with labels saw: :class:`~halikit.algorithm.Step`, and Eq. 10."""

    discriminator_loss: Tensor
    generator_loss: Tensor
    rho_q: Tensor
    rho_p: Tensor
    sleep_loss: Tensor
    supervised_loss: Tensor


Outcome = Step | SupervisedStep | Supervised | Bound


class Method(ABC):
    """One way to train a model; owns no optimisers.

    Attributes:
        columns: What :meth:`step` returns, in this order, as records name it.
        single_pass: Whether one backward pass serves two players.
        reason: What a step is, in words.
        decodes: Whether the decoder is trained, and worth looking at.
    """

    columns: ClassVar[tuple[str, ...]]
    single_pass = False
    reason: str
    decodes = True

    @abstractmethod
    def step(self, x: Tensor, step: int, schedule: Schedule) -> Outcome:
        """Add the gradients of step ``step``, counted from 0, on a batch ``(n, *shape of x)`` to ``.grad``."""

    @property
    def wrapped(self) -> tuple[nn.Module, ...]:
        """The modules that average their gradients over the processes, where there are several."""
        return ()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within it, gradients are each process's own; the first step behind it averages them with its own."""
        with ExitStack() as stack:
            for module in self.wrapped:
                stack.enter_context(unsynchronised(module))
            yield

    @property
    def kept(self) -> dict[str, nn.Module]:
        """What has a state beside the model's, by name."""
        return {}

    def measure(self, averaged: Hierarchy, part: Split) -> dict[str, float]:
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
        InputError: If there is no discriminator, or the sleep phase cannot be had as the settings ask for it.
    """

    columns: ClassVar[tuple[str, ...]] = ("d_loss", "g_loss", "rho_q", "rho_p", "sleep_loss")

    def __init__(self, model: Model, settings: TrainingConfig, processes: Processes) -> None:
        if model.discriminator is None:
            raise InputError("the game needs a discriminator: pass one to hk.Model, or set training.method to 'elbo'")
        self.settings = settings
        self._processes = processes
        self.objective = OBJECTIVES[settings.objective]
        self._sleep, _ = sleep_weights(model.hierarchy, settings.sleep)
        self._hierarchy, self._discriminator = model.hierarchy, model.discriminator
        self._input_noises = [game.noise.scale for game in model.discriminator.games]
        self.single_pass, self.reason = self._examined()
        self._captured: dict[tuple[Players, float], Captured[Step]] = {}
        self._draw: nn.Module | None = None
        self._judge: nn.Module | None = None
        if not settings.compile:
            self._draw = processes.wrap(Joints(model.hierarchy))
            self._judge = processes.wrap(Judges(model.discriminator))

    @property
    def wrapped(self) -> tuple[nn.Module, ...]:
        """Both players' modules, unless a step is one graph."""
        return tuple(module for module in (self._draw, self._judge) if module is not None)

    def step(self, x: Tensor, step: int, schedule: Schedule) -> Step:
        """One step of Algorithm 1, at the noise of its place in the schedule."""
        for game, first in zip(self._discriminator.games, self._input_noises, strict=True):
            game.noise.scale = schedule.input_noise(first, step) if first else 0.0
        kind = schedule.players(step), schedule.penalty(step)
        if not self.settings.compile:
            return self._play(*kind, x)
        if kind not in self._captured:
            self._captured[kind] = Captured(
                partial(self._play, *kind),
                (self._hierarchy, self._discriminator),
                mode=self.settings.compile,
                keeps=self.settings.accumulate > 1,
            )
        players = (self._hierarchy, self._discriminator)
        with self._processes.averaged(p for part in players for p in part.parameters()):
            return self._captured[kind](x)

    def _play(self, players: Players, penalty: float, x: Tensor) -> Step:
        settings = self.settings
        return play(
            self._hierarchy,
            self._discriminator,
            x,
            objective=self.objective,
            players=players,
            single_pass=self.single_pass,
            encoder_noise=settings.encoder_noise,
            sleep=self._sleep,
            penalty=penalty,
            penalised=settings.penalised,
            draw=self._draw,
            judge=self._judge,
        )

    def rest(self) -> None:
        """Give the discriminator its input noise back."""
        for game, first in zip(self._discriminator.games, self._input_noises, strict=True):
            game.noise.scale = first

    def _examined(self) -> tuple[bool, str]:
        """Whether one backward pass serves both players, and why."""
        settings = self.settings
        if settings.d_steps != 1 or settings.g_steps != 1:
            return False, f"rounds of {settings.d_steps} discriminator and {settings.g_steps} generator steps"
        hierarchy = self._hierarchy
        with evaluating(hierarchy), seeded(0, hierarchy.prior.device), torch.no_grad():
            states = hierarchy.sample_states(4)
        return supports_single_pass(self._discriminator, self.objective, states)


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
        self._hierarchy = model.hierarchy
        self._bound = processes.wrap(NegativeElbo(model.hierarchy))

    @property
    def wrapped(self) -> tuple[nn.Module, ...]:
        """The bound."""
        return (self._bound,)

    def step(self, x: Tensor, step: int, schedule: Schedule) -> Bound:
        """One step of descent."""
        return descend_elbo(self._hierarchy, x, bound=self._bound)

    def measure(self, averaged: Hierarchy, part: Split) -> dict[str, float]:
        """The bound on held-out data, with running statistics."""
        return {"held_out_negative_elbo": float(negative_elbo(averaged, part.batch(torch.arange(len(part)))))}


class LabelsAlone(Method):
    """Descent on Eq. 10, on the encoder and the class kernel alone: what the labels can do without the game.

    Args:
        model: With classes on top.
        settings: Of the labels.
        labelled: The labelled data.
        averaged: The hierarchy with averaged weights.
        processes: Those that train it together.
    """

    columns = ("supervised_loss",)
    reason = "descent on the cross entropy of the labelled data; the decoder is not trained"
    decodes = False

    def __init__(
        self,
        model: Model,
        settings: TrainingConfig,
        labelled: Labelled,
        averaged: Hierarchy,
        processes: Processes,
    ) -> None:
        classes = class_kernel(model.hierarchy).target.size
        self._hierarchy, self._averaged = model.hierarchy, averaged
        self._settings, self._labelled, self._processes = settings, labelled, processes
        wanted = settings.consistency_batch
        self._unseen = processes.share(wanted, "training.consistency_batch") if wanted else None
        self._shares = Shares(classes).to(processes.device) if settings.consistency else None
        self._graph = Graph(len(labelled.part)).to(processes.device) if settings.consistency_graph else None

    def step(self, x: Tensor, step: int, schedule: Schedule) -> Supervised:
        """One step of descent; of ``x``, whose labels are not seen, only the number is used."""
        settings = self._settings
        noise, weight = settings.encoder_noise, settings.supervised_weight
        with self._processes.averaged(self._hierarchy.parameters()):
            guessed = None
            if self._shares:
                index, unseen = self._labelled.draw(self._unseen or len(x))
                moved = self._labelled.moved(unseen, step)
                threshold, strength = settings.consistency_threshold, settings.consistency
                guessed = guess(self._averaged, unseen, moved, self._shares, threshold=threshold, weight=strength)
                if self._graph and settings.consistency_graph:
                    if step and step % settings.consistency_graph == 0:
                        self._graph.renew(self._averaged, self._labelled.part, self._labelled.index)
                        self._processes.spread(self._graph.buffers())
                    guessed = guessed._replace(weight=guessed.weight * self._graph(index, guessed.y))
            x, y = self._labelled.batch(step)
            return supervise(self._hierarchy, x, y, guessed, noise=noise, weight=weight)

    @property
    def kept(self) -> dict[str, nn.Module]:
        """How often the teacher says each class, and what the graph of its latents says of each datum."""
        return {name: part for name, part in (("shares", self._shares), ("graph", self._graph)) if part}

    def measure(self, averaged: Hierarchy, part: Split) -> dict[str, float]:
        """The share of held-out data that are put into a wrong class."""
        if part.labels is None:
            return {}
        predicted = classify(averaged, part.batch(torch.arange(len(part)))).argmax(1)
        return {"held_out_label_error": float((predicted != part.labels).double().mean())}


class SupervisedGame(Game):
    """Algorithm 1 with the supervised cost beside the generators' (section 7.2).

    Args:
        model: With classes on top, and a discriminator that reads them.
        settings: Of the game and of the labels.
        labelled: The labelled data.
        averaged: The hierarchy with averaged weights.
        processes: Those that play it together.
    """

    columns = (*Game.columns, "supervised_loss")

    def __init__(
        self,
        model: Model,
        settings: TrainingConfig,
        labelled: Labelled,
        averaged: Hierarchy,
        processes: Processes,
    ) -> None:
        super().__init__(model, settings, processes)
        self._supervision = LabelsAlone(model, settings, labelled, averaged, processes)
        self.reason += "; labelled data beside it"

    def step(self, x: Tensor, step: int, schedule: Schedule) -> SupervisedStep:  # type: ignore[override]
        """One step of Algorithm 1 and one batch of labelled data, whose gradients add up."""
        return SupervisedStep(*super().step(x, step, schedule), *self._supervision.step(x, step, schedule))

    @property
    def kept(self) -> dict[str, nn.Module]:
        """What the labels' part keeps."""
        return self._supervision.kept

    def measure(self, averaged: Hierarchy, part: Split) -> dict[str, float]:
        """The share of held-out data that are put into a wrong class."""
        return self._supervision.measure(averaged, part)


@dataclass(frozen=True)
class Labelled:
    """The data whose labels are seen, each by one of the processes that train together.

    Attributes:
        part: Where they are from, on the device where the model trains.
        index: Which of it, ``(N,)`` int64.
        size: Of a batch of all processes together, at most N.
        augmentation: What is done to images each time.
        seed: Of the order and the augmentation.
        rank: Number of this process, from 0.
        world: How many there are.
    """

    part: Split
    index: Tensor
    size: int
    augmentation: Augmentation
    seed: int
    rank: int = 0
    world: int = 1

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's images and labels of a step: another part of the data at each, all before one comes again."""
        assert self.part.labels is not None
        per_epoch = len(self.index) // self.size
        epoch, i = divmod(step, per_epoch)
        batch = order(len(self.index), self.seed, epoch)[i * self.size : (i + 1) * self.size]
        chosen = self.index[batch[self.rank :: self.world]]
        x = self.augmentation(self.part.batch(chosen), chosen, seed=self.seed, epoch=epoch)
        return x, self.part.labels[chosen.to(self.part.labels.device)]

    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        """Any images of the part, as they are, ``(number, *shape of x)``, behind their indices: noise of the step."""
        index = torch.randint(len(self.part), (number,), device=self.part.device)
        return index, self.part.batch(index)

    def moved(self, x: Tensor, step: int) -> Tensor:
        """This process's share of a batch augmented once more, differently at each step."""
        place = torch.arange(len(x)) * self.world + self.rank
        return self.augmentation(x, place, seed=self.seed, epoch=step)


def make_method(
    model: Model,
    settings: TrainingConfig,
    data: DataSet | None,
    augmentation: Augmentation,
    averaged: Hierarchy,
    processes: Processes,
) -> Method:
    """The method that the settings name.

    Args:
        model: On the device where it trains.
        settings: Which, and how.
        data: With labels, on that device, where some are to be seen.
        augmentation: Of the labelled images.
        averaged: The hierarchy with averaged weights.
        processes: Those that train together.

    Raises:
        InputError: If the model or the data cannot be trained by it, or the labels are too few for the processes.
    """
    if settings.method == "elbo":
        return Elbo(model, processes)
    if settings.labels is None:
        return Game(model, settings, processes)
    if data is None or data.train.labels is None:
        raise InputError(f"training.labels = {settings.labels}, but there are no labels in the data")
    classes = class_kernel(model.hierarchy).target.size
    if classes != len(data.classes):
        raise InputError(f"model.classes is {classes}, but {data.spec} has {len(data.classes)}")
    part, index = data.train, choose_labelled(data.train.labels, settings.labels, classes, settings.seed)
    if settings.propagation:
        x, seen = part.batch(torch.arange(len(part))), data.train.labels[index.to(data.train.labels.device)]
        part = replace(part, labels=propagate(x, index, seen, classes, settings.propagation))
        index = torch.arange(len(part))
    # Shares are equal, so that the mean of their gradients is that of the batch.
    size = min(len(index), settings.batch_size) // processes.world * processes.world
    if size < 2 * processes.world:
        raise InputError(f"training.labels = {len(index)} are too few for {processes.world} processes: each needs two")
    labelled = Labelled(part, index, size, augmentation, settings.seed, processes.rank, processes.world)
    if settings.method == "supervised":
        return LabelsAlone(model, settings, labelled, averaged, processes)
    return SupervisedGame(model, settings, labelled, averaged, processes)
