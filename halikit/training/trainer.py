"""The trainer: trains by one method over a data set, on a schedule, and keeps a record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from halikit import data as datasets
from halikit.config import Config, DataConfig, TrainingConfig
from halikit.errors import DivergedError, InputError
from halikit.hierarchy import Hierarchy
from halikit.model import Model
from halikit.random import seeded
from halikit.training.averaging import Averager
from halikit.training.methods import Outcome, make_method
from halikit.training.run import Record, Run, reconstruction_errors
from halikit.training.schedule import Schedule

__all__ = ["Trainer", "make_optimisers", "resolve_device"]

# How many held-out samples the errors are measured on, and how many are shown.
_HELD_OUT = 512
_SHOWN = 16


class Trainer:
    """Trains a model by the method of its settings: its hierarchy against its discriminator, or the hierarchy alone.

    Args:
        model: Any; its config's training settings apply unless others are given.
        data: A data set, a data spec such as ``"digits"``, or a tensor ``(n, *shape of x)``, the last tenth of which is
            held out. May be left out where batches come from you, through :meth:`step`.
        settings: Training settings.
        augmentation: What is done to images each time they are trained on; by default what the model's config says.
        out: Run directory to write to; nothing is written by default.
        on_record: Called with each :class:`~halikit.training.run.Record`.

    Raises:
        InputError: If data, settings and model do not fit each other.

    Attributes:
        averaged: The hierarchy with averaged weights, in evaluation mode.
        steps: Steps played so far.
        level: Levels that play.
        single_pass: Whether one backward pass serves both players; ``reason`` says why, or what a step is instead.
    """

    def __init__(
        self,
        model: Model,
        data: datasets.DataSet | str | Tensor | None = None,
        *,
        settings: TrainingConfig | None = None,
        augmentation: datasets.Augmentation | None = None,
        out: str | Path | None = None,
        on_record: Callable[[Record], None] | None = None,
    ) -> None:
        self.model = model
        self.settings = settings or (model.config.training if model.config else TrainingConfig())
        self.device = resolve_device(self.settings.device)
        self.data = _on(self.device, data, model.config.data.size if model.config else None)
        self.augmentation = augmentation or (model.config or Config()).data.augmentation()
        self._check()
        for module in model.parts.values():
            module.to(self.device).train()
        self.averager = Averager(model.hierarchy, self.settings.averaging)
        self._method = make_method(model, self.settings, self.data, self.augmentation, self.averaged)
        self.steps = 0
        self._seconds = 0.0
        self.schedule = self._scheduled(self.settings.steps)
        self._stand(self.schedule.level(0))
        self._optimisers = make_optimisers(model, self.settings)
        self._rates = [optimiser.param_groups[0]["lr"] for optimiser in self._optimisers]
        self._on_record = on_record
        self.run = Run(out, model) if out is not None else None

    @property
    def averaged(self) -> Hierarchy:
        """The hierarchy with averaged weights, in evaluation mode."""
        return self.averager.average

    @property
    def single_pass(self) -> bool:
        """Whether one backward pass serves both players."""
        return self._method.single_pass

    @property
    def reason(self) -> str:
        """Why that is so, or what a step is instead, in words."""
        return self._method.reason

    def fit(self, steps: int | None = None) -> Model:
        """Play.

        Args:
            steps: How many more steps; by default what is left of the settings' steps. Growth and rates are
                planned over all steps up to the last of these.

        Returns:
            The model, trained, with its raw weights; those of :attr:`averaged` are usually better.

        Raises:
            InputError: If there are no data.
            DivergedError: If a loss is no longer finite.
        """
        if self.data is None:
            raise InputError("this trainer has no data: give it some, or play batches of your own with step(batch)")
        total = max(self.settings.steps, self.steps) if steps is None else self.steps + steps
        self.schedule = self._scheduled(total)
        self.schedule.check()
        if self.run:
            self.run.describe(self.config)
        with _threads(self.settings.threads):
            self._fit(total)
        self._method.rest()
        return self.model

    @property
    def config(self) -> Config:
        """All that the training depends on, as it is played."""
        config = self.model.config or Config()
        changes: dict[str, object] = {"training": self.settings.model_copy(update={"steps": self.schedule.total})}
        if self.data is not None:
            changes["data"] = config.data if self.model.config else DataConfig(spec=self.data.spec)
        return config.model_copy(update=changes)

    def _fit(self, total: int) -> None:
        assert self.data is not None
        settings = self.settings
        batches = self._batches()
        last = time.perf_counter()
        started = last - self._seconds
        seen: list[Outcome] = []
        while self.steps < total:
            seen.append(self.step(next(batches)))
            evaluate = self.steps % settings.evaluate_every == 0 or self.steps == total
            if not evaluate and self.steps % settings.log_every:
                continue
            # The only place where the host waits for the device.
            means = torch.stack([torch.stack(step) for step in seen]).mean(0).tolist()
            if not all(map(math.isfinite, means)):
                raise DivergedError(
                    f"the loss is no longer finite in the {len(seen)} steps before step {self.steps}; "
                    "try a lower learning rate or more input noise"
                )
            now = time.perf_counter()
            rate = len(seen) / (now - last)
            errors, measured = self._evaluate() if evaluate else ((), {})
            self._seconds = time.perf_counter() - started
            record = Record(
                step=self.steps,
                level=self.level,
                seconds=self._seconds,
                steps_per_second=rate,
                images_per_second=rate * settings.batch_size,
                errors=errors,
                **dict(zip(self._method.columns, means, strict=True)),
                **measured,
            )
            if self.run:
                self.run.record(record)
            if self._on_record:
                self._on_record(record)
            last, seen = time.perf_counter(), []

    def step(self, batch: Tensor) -> Outcome:
        """Take one step: of Algorithm 1, moving both players, unless the method is another.

        Args:
            batch: ``(n, *shape of x)``, two samples or more.

        Returns:
            Losses and mean predictions, on the device, as the method gives them.

        Raises:
            InputError: If the batch does not fit.
        """
        shape = self.model.hierarchy.spaces[0].shape
        if batch.shape[1:] != shape or len(batch) < 2:
            raise InputError(
                f"a training batch is (n, {', '.join(map(str, shape))}) with n ≥ 2, got {tuple(batch.shape)}"
            )
        settings = self.settings
        level = max(self.level, self.schedule.level(self.steps))
        if level != self.level:
            self._stand(level)
        rate = self.schedule.rate(self.steps)
        for optimiser, full in zip(self._optimisers, self._rates, strict=True):
            optimiser.param_groups[0]["lr"] = full * rate
            optimiser.zero_grad()
        # The noise of a step depends on nothing that went before; the caller's generators are given back.
        with (
            seeded(_noise_seed(settings.seed, self.steps), self.device),
            torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"),
        ):
            outcome = self._method.step(batch.to(self.device), self.steps, self.schedule)
        for optimiser in self._optimisers:
            optimiser.step()
        self.steps += 1
        self.averager.update(self.steps)
        return outcome

    def _evaluate(self) -> tuple[tuple[float, ...], dict[str, float]]:
        """Errors and what the method measures, on held-out data; pictures and the model into the run directory."""
        assert self.data is not None
        settings = self.settings
        averaged = self.averaged[: self.level]
        held_out = self.data.held_out
        x = held_out.batch(torch.arange(min(_HELD_OUT, len(held_out)), device=self.device))
        with torch.no_grad():
            errors = reconstruction_errors(averaged, x)
            with seeded(settings.seed, self.device):
                measured = self._method.measure(averaged, held_out[:_HELD_OUT])
            if self.run:
                rows = {"x": x[:_SHOWN]}
                names = [space.name for space in averaged.spaces]
                rows |= {names[i]: averaged.reconstruct(x[:_SHOWN], i) for i in range(1, self.level + 1)}
                with seeded(settings.seed, self.device):
                    self.run.pictures(averaged.sample(_SHOWN**2 // 2), rows, self.steps)
                config = self.config if self.model.config else None
                self.run.save(self.averaged, config, self.steps, self.level)
        return errors, measured

    def _batches(self) -> Iterator[Tensor]:
        """Full batches in the order of (seed, epoch), from where the steps played so far have come to."""
        assert self.data is not None
        train, size = self.data.train, self.settings.batch_size
        per_epoch = len(train) // size
        epoch, first = divmod(self.steps, per_epoch)
        while True:
            order = datasets.order(len(train), self.settings.seed, epoch).to(self.device)
            for i in range(first, per_epoch):
                index = order[i * size : (i + 1) * size]
                yield self.augmentation(train.batch(index), index, seed=self.settings.seed, epoch=epoch)
            epoch, first = epoch + 1, 0

    def _stand(self, level: int) -> None:
        """Let the first ``level`` levels play."""
        self.level = level
        self._method.stand(level)

    def _scheduled(self, total: int) -> Schedule:
        return Schedule(self.settings, total, len(self.model.hierarchy), self._method.grows)

    def _check(self) -> None:
        if self.data is None:
            return
        shape = self.model.hierarchy.spaces[0].shape
        if self.data.shape != shape:
            raise InputError(f"the model is for data of shape {shape}, but {self.data.spec} has {self.data.shape}")
        if self.settings.batch_size < 2:
            raise InputError("training.batch_size must be at least 2: batch statistics need a batch")
        self.data.check_batch(self.settings.batch_size)
        self.augmentation.check(shape)


def resolve_device(name: str) -> torch.device:
    """The device called ``auto``, ``cpu`` or ``cuda``; ``auto`` is CUDA where there is some.

    Raises:
        InputError: If it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise InputError(f"a device is auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not available: torch sees {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Let one operation use so many threads of the CPU; small models gain nothing from a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _on(
    device: torch.device, data: datasets.DataSet | str | Tensor | None, size: int | None
) -> datasets.DataSet | None:
    if data is None:
        return None
    if isinstance(data, str):
        data = datasets.load(data, size=size)
    elif isinstance(data, Tensor):
        data = datasets.from_tensor(data)
    return data.to(device)


def make_optimisers(model: Model, settings: TrainingConfig) -> tuple[torch.optim.Adam, ...]:
    """One for each part of a model: the hierarchy, and the discriminator if there is one."""
    rates = {"hierarchy": settings.learning_rate}
    rates["discriminator"] = settings.discriminator_learning_rate or settings.learning_rate
    return tuple(_adam(part, rates[name], settings.betas) for name, part in model.parts.items())


def _adam(module: torch.nn.Module, rate: float, betas: tuple[float, float]) -> torch.optim.Adam:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # A player may be frozen whole, but Adam refuses to have nothing to do.
    return torch.optim.Adam(parameters or [torch.zeros(0)], lr=rate, betas=betas, fused=True)


def _noise_seed(seed: int, step: int, rank: int = 0) -> int:
    """One number from (seed, step, rank), which are all that noise depends on."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
