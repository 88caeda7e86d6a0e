"""Training with few labels: the supervised cost beside the game (section 7.2), or labels alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from halikit.config import Config
from halikit.data import Augmentation, DataSet, OwnAugmentation, Split, order
from halikit.errors import InputError
from halikit.hardware.processes import Processes
from halikit.hierarchy import Hierarchy
from halikit.model import Model
from halikit.semi.consistency import DistributionAlignment, pseudo_labels
from halikit.semi.labelled import choose_labelled
from halikit.semi.propagation import PropagatedLabels, propagate
from halikit.semi.settings import LabelSettings
from halikit.supervision import class_kernel, classify, supervised_cost
from halikit.training.method import Method

__all__ = ["Labelled", "LabelsMethod", "Supervision", "supervision_for"]

# Images that the teacher encodes at once.
_BATCH = 500


@dataclass(frozen=True)
class Labelled:
    """The labelled examples. Each example of a batch is used by one of the processes that train together.

    Attributes:
        part: The part of the data that they belong to, on the device where the model trains.
        index: Their indices in the part, ``(N,)`` int64.
        size: Size of a batch over all processes, at most N.
        augmentation: Augmentation of the images, drawn anew each time.
        seed: Seed of the order and the augmentation.
        rank: Rank of this process.
        world: Number of processes.
    """

    part: Split
    index: Tensor
    size: int
    augmentation: Augmentation | OwnAugmentation
    seed: int
    rank: int = 0
    world: int = 1

    @property
    def labels(self) -> Tensor:
        """The labels of the examples, ``(N,)`` int64."""
        assert self.part.labels is not None
        return self.part.labels[self.index.to(self.part.labels.device)]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's images and labels in a step. Every example is used once before one is used again."""
        assert self.part.labels is not None
        per_epoch = len(self.index) // self.size
        epoch, i = divmod(step, per_epoch)
        batch = order(len(self.index), self.seed, epoch)[i * self.size : (i + 1) * self.size]
        chosen = self.index[batch[self.rank :: self.world]]
        x = self.augmentation(self.part.batch(chosen), chosen, seed=self.seed, epoch=epoch)
        return x, self.part.labels[chosen.to(self.part.labels.device)]

    def unlabelled(self, number: int) -> tuple[Tensor, Tensor]:
        """Random indices into the part, and the images there without augmentation, ``(number, *shape of x)``."""
        index = torch.randint(len(self.part), (number,), device=self.part.device)
        return index, self.part.batch(index)

    def augmented(self, x: Tensor, step: int) -> Tensor:
        """This process's images with the augmentation of the step."""
        place = torch.arange(len(x)) * self.world + self.rank
        return self.augmentation(x, place, seed=self.seed, epoch=step)


class Supervision(nn.Module):
    """Eq. 10 on labelled examples plus the consistency loss on unlabelled ones, for the encoder and ``q(y|z_L)``.

    Args:
        labelled: The labelled examples.
        settings: The settings of the labels.
        teacher: The hierarchy with averaged weights, in evaluation mode.
        classes: Number of classes.
        noise: σ of Eq. 9, the standard deviation of the noise on the encoder's input.
        unlabelled: Images of the consistency loss in each step, for this process.
        broadcast: Makes tensors equal to those of rank 0.
    """

    def __init__(
        self,
        labelled: Labelled,
        settings: LabelSettings,
        teacher: Hierarchy,
        classes: int,
        *,
        noise: float,
        unlabelled: int,
        broadcast: Callable[[Iterable[Tensor]], None],
    ) -> None:
        super().__init__()
        self._labelled, self._settings, self._noise, self._unlabelled = labelled, settings, noise, unlabelled
        # In a tuple, so that it is not a submodule: its weights are those of the training.
        self._teacher, self._broadcast = (teacher,), broadcast
        self.alignment = DistributionAlignment(classes) if settings.consistency_weight else None
        self.graph = PropagatedLabels(len(labelled.part)) if settings.propagate_every else None
        self.to(teacher.prior.device)

    def forward(self, step: Any) -> Tensor:
        """The loss of a step, ``()``, in nats; ``step`` has a ``hierarchy`` and a ``number``."""
        unlabelled = None
        if self.alignment is not None:
            index, images = self._labelled.unlabelled(self._unlabelled)
            augmented = self._labelled.augmented(images, step.number)
            threshold = self._settings.pseudo_label_threshold
            labels = pseudo_labels(self._teacher[0], images, self.alignment, threshold=threshold)
            weight = self._settings.consistency_weight * labels.is_sure
            if self.graph is not None:
                self._propagate(step.number)
                weight = weight * self.graph(index, labels.y)
            unlabelled = (augmented, labels.y, weight)
        x, y = self._labelled.batch(step.number)
        if unlabelled is None:
            return supervised_cost(step.hierarchy, x, y, noise=self._noise).mean()
        # One batch for both, so that its statistics are the same for both.
        augmented, guessed, weight = unlabelled
        cost = supervised_cost(step.hierarchy, torch.cat([x, augmented]), torch.cat([y, guessed]), noise=self._noise)
        return cost[: len(x)].mean() + (weight * cost[len(x) :]).mean()

    def measure(self, averaged: Hierarchy, part: Split) -> dict[str, float]:
        """The share of held-out images that are assigned to a wrong class."""
        if part.labels is None:
            return {}
        predicted = classify(averaged, part.batch(torch.arange(len(part)))).argmax(1)
        return {"held_out_label_error": float((predicted != part.labels).double().mean())}

    def _propagate(self, step: int) -> None:
        """Propagate the labels anew, in the steps in which that is due."""
        every, part = self._settings.propagate_every, self._labelled.part
        if self.graph is None or not every or not step or step % every:
            return
        below, kernel = self._teacher[0][:-1], class_kernel(self._teacher[0])
        rows = torch.arange(len(part), device=part.device).split(_BATCH)
        with torch.no_grad():
            z = torch.cat([below.encode(part.batch(i))[kernel.source.name] for i in rows])
        self.graph.update(z, self._labelled.index, self._labelled.labels, kernel.target.size)
        self._broadcast(self.graph.buffers())


@dataclass(frozen=True)
class _Context:
    hierarchy: Hierarchy
    number: int


class LabelsMethod(Method):
    """Descent on Eq. 10 alone, without a game: what the labels can do by themselves.

    Args:
        model: A model with classes on top.
        supervision: The loss.
    """

    columns = ("supervised_loss",)
    description = "descent on the cross entropy of the labelled data; the decoder is not trained"
    trains_decoder = False

    def __init__(self, model: Model, supervision: Supervision) -> None:
        self._hierarchy, self._supervision = model.hierarchy, supervision

    def add_gradients(
        self, x: Tensor, labels: Tensor | None, step: int, total: int, *, context: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One step of descent. The batch is not used: its labels are not known."""
        loss = self._supervision(_Context(self._hierarchy, step))
        loss.backward()
        return {"supervised_loss": loss.detach()}

    @property
    def extra_modules(self) -> dict[str, tuple[nn.Module, str]]:
        """The state of the supervision."""
        return {"extra.supervised_loss": (self._supervision, "encoder")}

    def measure(self, averaged: Hierarchy, part: Split) -> dict[str, float]:
        """The share of held-out images that are assigned to a wrong class."""
        return self._supervision.measure(averaged, part)


def supervision_for(
    model: Model,
    config: Config,
    data: DataSet | None,
    augmentation: Augmentation | OwnAugmentation,
    teacher: Hierarchy,
    processes: Processes,
) -> Supervision:
    """The supervised loss that the settings ask for.

    Args:
        model: A model with classes on top, on the device where it trains.
        config: The settings, with labels.
        data: The data set, on that device.
        augmentation: Augmentation of the images.
        teacher: The hierarchy with averaged weights.
        processes: The processes that train together.

    Raises:
        InputError: If the data have no labels or other classes, or there are too few labels for the processes.
    """
    settings, training = config.labels, config.training
    assert settings is not None
    if data is None or data.train.labels is None:
        raise InputError(f"labels.number = {settings.number}, but the data have no labels")
    classes = class_kernel(model.hierarchy).target.size
    if classes != len(data.classes):
        raise InputError(f"model.classes is {classes}, but {data.spec} has {len(data.classes)}")
    part, index = data.train, choose_labelled(data.train.labels, settings.number, classes, training.seed)
    if settings.propagation_neighbours:
        x, known = part.batch(torch.arange(len(part))), data.train.labels[index.to(data.train.labels.device)]
        part = replace(part, labels=propagate(x, index, known, classes, settings.propagation_neighbours))
        index = torch.arange(len(part))
    # All processes take equally many, so that the mean of their gradients is the gradient of the batch.
    size = min(len(index), training.batch_size) // processes.world * processes.world
    if size < 2 * processes.world:
        raise InputError(f"labels.number = {len(index)} is too few for {processes.world} processes: each needs two")
    wanted = settings.consistency_batch_size
    return Supervision(
        Labelled(part, index, size, augmentation, training.seed, processes.rank, processes.world),
        settings,
        teacher,
        classes,
        noise=training.encoder_noise,
        unlabelled=processes.share(wanted, "labels.consistency_batch_size")
        if wanted
        else processes.share(training.batch_size),
        broadcast=processes.broadcast,
    )
