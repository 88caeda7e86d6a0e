"""Loggers: whoever takes numbers and pictures of a training, recognised by their methods.

The interface is that of Lightning's loggers: ``log_metrics(metrics, step)`` is needed, ``log_hyperparams(params)``,
``log_image(key, images, step)`` and ``finalize(status)`` are used where a logger has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from halikit.config import Config, flattened
from halikit.errors import InputError
from halikit.runs.events import Events
from halikit.runs.record import Record, values_of
from halikit.runs.run import Run

__all__ = ["Loggers", "Pictures", "TrackerLogger", "named_loggers"]

# Pictures by name, ``(H, W, 3)`` uint8.
Pictures = Mapping[str, NDArray[np.uint8]]


class Loggers:
    """Hands what a training measures to several loggers.

    Args:
        loggers: Objects with a method ``log_metrics(metrics, step)``.
        latents: Names of the latents, from level 1 up.

    Raises:
        InputError: If one has no such method.
    """

    def __init__(self, loggers: Sequence[Any], latents: Sequence[str]) -> None:
        for logger in loggers:
            if not callable(getattr(logger, "log_metrics", None)):
                raise InputError(f"a logger has a method log_metrics(metrics, step); {logger!r} has none")
        self._loggers, self._latents = list(loggers), list(latents)

    def __len__(self) -> int:
        return len(self._loggers)

    def start(self, config: Config, step: int) -> None:
        """Log the settings, and take back what was logged after a step where a logger can do that."""
        self.rewind(step)
        for logger in self._loggers:
            if hasattr(logger, "log_hyperparams"):
                with suppress(NotImplementedError):  # the CSV logger of Fabric has the method, and only raises
                    logger.log_hyperparams(flattened(config))

    def rewind(self, step: int) -> None:
        """Take back what was logged after a step, where a logger has ``rewind(step)``."""
        for logger in self._loggers:
            if hasattr(logger, "rewind"):
                logger.rewind(step)

    def record(self, record: Record) -> None:
        """Log the numbers of a record under the names of the columns of ``metrics.csv``."""
        values = values_of(record, self._latents)
        metrics = {name: float(value) for name, value in values.items() if name != "step"}
        for logger in self._loggers:
            logger.log_metrics(metrics, step=record.step)

    def pictures(self, pictures: Pictures, step: int) -> None:
        """Log pictures: by ``log_image``, else by ``experiment.add_image`` as TensorBoard has it, else not at all."""
        for logger in self._loggers:
            experiment = None if hasattr(logger, "log_image") else getattr(logger, "experiment", None)
            for name, pixels in pictures.items():
                if hasattr(logger, "log_image"):
                    logger.log_image(name, [pixels], step=step)
                elif experiment is not None and hasattr(experiment, "add_image"):
                    experiment.add_image(name, pixels, step, dataformats="HWC")

    def finish(self, status: Literal["success", "failed"]) -> None:
        """Let the loggers write what they still hold."""
        for logger in self._loggers:
            if hasattr(logger, "finalize"):
                logger.finalize(status)


class TrackerLogger:
    """A logger for trackio, or for wandb, which has the same functions. The package is imported when it is first used.

    Args:
        project: Name of the project.
        name: Name of the run; the tracker makes one by default.
        package: ``"trackio"`` or ``"wandb"``.

    Raises:
        InputError: If the package is not installed.
    """

    def __init__(
        self, project: str = "halikit", name: str | None = None, *, package: Literal["trackio", "wandb"] = "trackio"
    ) -> None:
        if find_spec(package) is None:
            raise InputError(f"{package} is not installed; the extra brings it: pip install 'halikit[{package}]'")
        self.project, self.name, self.package = project, name, package
        self._params: dict[str, Any] = {}
        self._tracker: Any = None

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Remember the settings for the start of the run."""
        self._params = dict(params)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers by name."""
        self._started().log(dict(metrics), step=step)

    def log_image(self, key: str, images: Sequence[NDArray[np.uint8]], step: int | None = None) -> None:
        """Log pictures, ``(H, W, 3)`` each; with several, their names are numbered from the second on."""
        tracker = self._started()
        for number, image in enumerate(images, 1):
            tracker.log({key if number == 1 else f"{key}-{number}": tracker.Image(image)}, step=step)

    def finalize(self, status: str) -> None:
        """End the run of the tracker; the next number starts another one."""
        if self._tracker is not None:
            self._tracker.finish()
            self._tracker = None

    def _started(self) -> Any:
        if self._tracker is None:
            tracker = import_module(self.package)
            tracker.init(project=self.project, name=self.name, config=self._params)
            self._tracker = tracker
        return self._tracker


def named_loggers(names: Sequence[str], run: Run) -> list[Any]:
    """The loggers that ``record.loggers`` names. ``csv`` is none of them: a run directory always has ``metrics.csv``.

    Raises:
        InputError: If the package of one is not installed.
    """
    loggers: list[Any] = [Events(run.events_folder)] if "tensorboard" in names else []
    name = run.path.resolve().name
    if "wandb" in names:
        loggers.append(TrackerLogger(name=name, package="wandb"))
    if "trackio" in names:
        loggers.append(TrackerLogger(name=name, package="trackio"))
    return loggers
