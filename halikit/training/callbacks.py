"""Callbacks: what a user's own code sees of a training, and how it stops one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from halikit.config import Config
from halikit.hierarchy import Hierarchy
from halikit.model import Model
from halikit.runs.loggers import Loggers, Pictures
from halikit.runs.record import Record, metric_of, prefers_higher
from halikit.runs.run import Run
from halikit.training.metrics import latents_of

__all__ = ["Audience", "Callback", "EarlyStopping", "Training"]


class Training(Protocol):
    """What a callback may use of the trainer: :class:`halikit.Trainer`.

    Attributes:
        model: The model.
        averaged: The hierarchy with averaged weights.
    """

    model: Model
    averaged: Hierarchy

    @property
    def steps(self) -> int:
        """Steps so far."""

    @property
    def config(self) -> Config:
        """All settings."""

    @property
    def run(self) -> Run | None:
        """The run directory, if there is one."""

    def stop(self, reason: str) -> None:
        """End the training after the step and save it."""


class Callback:
    """Methods that a training calls; all are empty here, and a subclass fills those that it needs.

    ``on_setup``, ``on_step`` and ``on_end`` are called on every process; the others on rank 0 alone. To end the
    training, call ``training.stop(reason)``.
    """

    def on_setup(self, training: Training) -> None:
        """Before the first step of ``fit``."""

    def on_step(self, training: Training, losses: Mapping[str, Tensor]) -> None:
        """After a step; losses by name, ``()`` each, on the device. Reading one waits for the device."""

    def on_record(self, training: Training, record: Record) -> None:
        """After a record; ``record.evaluated`` says whether held-out data were evaluated."""

    def on_pictures(self, training: Training, pictures: Pictures) -> None:
        """At an evaluation, before its record: ``samples`` and ``reconstructions``, ``(H, W, 3)`` uint8."""

    def on_checkpoint(self, training: Training, path: Path) -> None:
        """After a checkpoint was written; its directory."""

    def on_end(self, training: Training) -> None:
        """After the last step of ``fit``, or after an error."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback, as JSON values."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; it is empty where the checkpoint has none."""


class EarlyStopping(Callback):
    """Stops a training whose metric has not improved for several evaluations.

    Args:
        metric: A column of ``metrics.csv``; ``error``, ``embedded``, ``recovery`` or ``recovery_from_x`` for the mean
            over the levels; ``auto`` for the mean error. Recovery is to rise, all others to fall.
        patience: Number of evaluations without an improvement.
        least: An improvement is larger than this.
    """

    def __init__(self, metric: str = "auto", *, patience: int = 5, least: float = 0.0) -> None:
        self.metric, self.patience, self.least = metric, patience, least
        self._best: float | None = None
        self._waited = 0

    def on_record(self, training: Training, record: Record) -> None:
        """Compare an evaluation with the best one so far."""
        value = metric_of(record, self.metric, latents_of(training.model))
        if not record.evaluated or value is None:
            return
        sign = 1 if prefers_higher(self.metric) else -1
        if self._best is None or sign * (value - self._best) > self.least:
            self._best, self._waited = value, 0
            return
        self._waited += 1
        if self._waited >= self.patience:
            training.stop(f"{self.metric} has not improved on {self._best:.4g} in {self._waited} evaluations")

    def state(self) -> dict[str, Any]:
        """The best value so far, and the number of evaluations since."""
        return {"best": self._best, "waited": self._waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._best, self._waited = state.get("best"), state.get("waited", 0)


class Audience:
    """The callbacks and loggers of one training.

    Args:
        training: The training, as callbacks get it.
        callbacks: Called in this order.
        loggers: They log on rank 0 alone.
        is_first: Whether this process is rank 0.
    """

    def __init__(self, training: Training, callbacks: Sequence[Callback], loggers: Loggers, *, is_first: bool) -> None:
        self._training, self._callbacks, self._is_first = training, list(callbacks), is_first
        self._loggers = loggers

    @property
    def sees_pictures(self) -> bool:
        """Whether anybody takes pictures."""
        return bool(self._callbacks or len(self._loggers))

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Call ``on_setup`` at the beginning, and ``on_end`` at the end in any case."""
        if self._is_first:
            self._loggers.start(self._training.config, self._training.steps)
        self._each(lambda callback: callback.on_setup(self._training))
        has_ended = False
        try:
            yield
            has_ended = True
        finally:
            self._each(lambda callback: callback.on_end(self._training))
            if self._is_first:
                self._loggers.finish("success" if has_ended else "failed")

    def step(self, losses: Mapping[str, Tensor]) -> None:
        """A step was taken; its losses by name, ``()`` each."""
        for callback in self._callbacks:
            callback.on_step(self._training, losses)

    def record(self, record: Record) -> None:
        """A record was made."""
        self._loggers.record(record)
        self._each(lambda callback: callback.on_record(self._training, record))

    def pictures(self, pictures: Pictures) -> None:
        """Pictures were made."""
        self._loggers.pictures(pictures, self._training.steps)
        self._each(lambda callback: callback.on_pictures(self._training, pictures))

    def checkpoint(self, path: Path) -> None:
        """A checkpoint was written."""
        self._each(lambda callback: callback.on_checkpoint(self._training, path))

    def states(self) -> list[dict[str, Any]]:
        """The states of the callbacks, each with the name of its class."""
        return [{"class": type(callback).__name__, "state": callback.state()} for callback in self._callbacks]

    def restore(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Give each callback the next state of its class."""
        left = list(states)
        for callback in self._callbacks:
            own = next((each for each in left if each["class"] == type(callback).__name__), None)
            if own is not None:
                left.remove(own)
            callback.restore(own["state"] if own else {})

    def rewind(self) -> None:
        """Let the loggers take back what came after the present step."""
        if self._is_first:
            self._loggers.rewind(self._training.steps)

    def _each(self, call: Callable[[Callback], None]) -> None:
        for callback in self._callbacks:
            call(callback)
