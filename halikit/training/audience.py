"""The audience of a training: the callbacks and loggers that were given or that the settings name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from halikit.config import Config
from halikit.runs.loggers import Loggers, Pictures, named_loggers
from halikit.runs.record import Record
from halikit.runs.run import Run
from halikit.training.callbacks import Callback, EarlyStopping, Training
from halikit.training.method import Method
from halikit.training.metrics import check_metric, latents_of

__all__ = ["Audience", "make_audience"]


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


def make_audience(
    training: Training,
    config: Config,
    method: Method,
    out: str | Path | None,
    loggers: Sequence[Any] | None,
    callbacks: Sequence[Callback],
    *,
    is_first: bool,
) -> Audience:
    """The callbacks and loggers of a training.

    Args:
        training: The training.
        config: Its settings.
        method: Its method.
        out: The run directory, if there is one.
        loggers: The loggers; ``None`` for those of the settings.
        callbacks: The callbacks; those of the settings follow.
        is_first: Whether this process is rank 0.

    Raises:
        InputError: If a metric is named that the training does not measure, or a logger is none or is not installed.
    """
    record = config.record
    named = [("record.best_by", record.best_by), ("record.stop_metric", record.stop_metric)]
    named += [("EarlyStopping(metric)", each.metric) for each in callbacks if isinstance(each, EarlyStopping)]
    for place, name in named:
        check_metric(name, place, config, training.model, method)
    if loggers is None:
        loggers = named_loggers(record.loggers, Run(out)) if out is not None and is_first else ()
    stopping = [EarlyStopping(record.stop_metric, patience=record.stop_after)] if record.stop_after else []
    return Audience(training, [*callbacks, *stopping], Loggers(loggers, latents_of(training.model)), is_first=is_first)
