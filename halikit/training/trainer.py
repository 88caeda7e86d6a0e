"""The trainer: joins model, data, method, optimisers and run directory, and plays the steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from halikit import data as datasets
from halikit.config import Config, DataSettings
from halikit.errors import InputError
from halikit.hardware.hardware import Hardware
from halikit.hardware.memory import explained_shortage
from halikit.hardware.processes import resolve_device
from halikit.model import Model
from halikit.objectives import Objective
from halikit.optimisation.ema import Averager
from halikit.optimisation.parts import OptimiserFactory, SchedulerFactory
from halikit.runs.loggers import Loggers, Pictures, named_loggers
from halikit.runs.record import Record, metric_of, prefers_higher
from halikit.runs.run import Run
from halikit.training.alarms import Alarms
from halikit.training.batches import Batches
from halikit.training.budget import steps_within
from halikit.training.callbacks import Audience, Callback, EarlyStopping
from halikit.training.defaults import fitting_mode, fitting_precision
from halikit.training.evaluation import Evaluation
from halikit.training.extra_losses import ExtraLoss, modules_of
from halikit.training.game import resolve_game
from halikit.training.meter import Meter
from halikit.training.methods import make_method
from halikit.training.metrics import check_metric, latents_of
from halikit.training.persistence import Persistence
from halikit.training.plan import Plan, is_worth_a_rehearsal, rehearse
from halikit.training.signals import Signals
from halikit.training.sleep import resolve_sleep_weights
from halikit.training.stepper import Stepper

__all__ = ["Trainer"]

# Takes the place of a signal's number where a callback has asked to stop; no signal that is caught has it.
_STOP = 1


class Trainer:
    """Trains a model by the method of its settings: its hierarchy against its discriminator, or the hierarchy alone.

    A model that takes a context gets the labels of the data, or their attributes if there are no labels.

    Args:
        model: The model; the settings of its config apply unless others are given.
        data: A data set, a data spec such as ``"digits"``, a path or a list of paths of images, or samples ``(n, *shape
            of x)``, as a tensor, a NumPy array, a ``Dataset`` or ``DataLoader`` of torch, of which the last tenth is
            held out; see :func:`halikit.data.as_data_set`. May be left out where batches come from you, through
            :meth:`step`.
        settings: Settings; ``[model]`` and ``[discriminator]`` are not read.
        extra_losses: Losses beside those of Algorithm 1.
        objective: An objective of your own, a function as in :mod:`halikit.objectives`; it replaces that of the
            settings. The run records its name, and has to be given the function again to be resumed.
        augmentation: Augmentation of training images; by default as the settings say. Any function from a batch ``(b,
            *shape of x)`` to one of that shape will do; see :class:`~halikit.data.OwnAugmentation`.
        out: Run directory to write to; nothing is written by default.
        resume: Go on with the run in ``out``: ``True`` from its newest good checkpoint, a number from the checkpoint
            of that step, a path from the checkpoint there, of whichever run.
        loggers: Take metrics and pictures on rank 0: any objects with Lightning's ``log_metrics(metrics, step)``,
            see :mod:`halikit.runs.loggers`. By default those of ``record.loggers``, where a run is written.
        optimisers: Optimisers of your own: a function from the name of a part (``"hierarchy"``, ``"discriminator"``, or
            the name of an extra loss) and its module to a ``torch.optim.Optimizer``. It replaces Adam and the schedule
            of ``[optimiser]``.
        schedulers: Schedules of your own: a function from the name of a part and its optimiser to a schedule of
            ``torch.optim.lr_scheduler``, which is stepped after each step. It replaces the schedule of ``[optimiser]``.
        callbacks: See :class:`~halikit.training.callbacks.Callback`.
        on_record: Called with each :class:`~halikit.runs.record.Record`.
        on_notice: Called with each notice; by default it is a Python warning.

    Raises:
        InputError: If data, settings and model do not fit each other, the model takes a context and the data have
            neither labels nor attributes, or there is no checkpoint to resume from.

    Attributes:
        model: The model.
        averaged: The hierarchy with averaged weights, in evaluation mode.
        hardware: Device, precision and processes.
        precision_reason: Why ``auto`` chose this precision; empty where the settings name one.
        compile_reason: Why ``auto`` chose compiled or eager steps, once steps are planned.
        method: What a step is; ``method.description`` says it in words.
        data: The data set, on the device where the model trains.
        stopped: Why the last ``fit`` was asked to stop before its last step; empty if it was not.
    """

    def __init__(
        self,
        model: Model,
        data: datasets.Given | None = None,
        *,
        settings: Config | None = None,
        extra_losses: Sequence[ExtraLoss] = (),
        objective: Objective | None = None,
        augmentation: datasets.Augmentation | Callable[[Tensor], Tensor] | None = None,
        out: str | Path | None = None,
        resume: bool | int | str | Path = False,
        loggers: Sequence[Any] | None = None,
        callbacks: Sequence[Callback] = (),
        optimisers: OptimiserFactory | None = None,
        schedulers: SchedulerFactory | None = None,
        on_record: Callable[[Record], None] | None = None,
        on_notice: Callable[[str], None] = warnings.warn,
    ) -> None:
        config = settings or model.config or Config()
        self.model, self._on_record = model, on_record
        device = resolve_device(config.hardware.device)
        config, self.precision_reason = fitting_precision(config, model.hierarchy.prior.dtype, device)
        self.hardware = Hardware(config.hardware, on_notice)
        config = resolve_game(config, objective)
        found = None if data is None else datasets.as_data_set(data, **config.data.reading)
        self._context = None if found is None else model.context_kind(found)
        self.hardware.prepare(model.parts.values())
        dtype = model.hierarchy.prior.dtype
        self.data = None if found is None else found.to(self.hardware.device).in_dtype(dtype)
        context = self._some_context()
        given = model.hierarchy.conditioned(None if context is None else context[:1])
        self._settings = resolve_sleep_weights(config, given, self.hardware.notify)
        changes = config.data.augmentation() if augmentation is None else datasets.as_augmentation(augmentation)
        self._batches = self._make_batches(changes)
        self.hardware.place(modules_of(extra_losses))
        averager = Averager(model.hierarchy, config.training.ema_decay)
        self.averaged = averager.average
        self.method = make_method(
            *(model, self._settings, self.data, changes, self.averaged, self.hardware, extra_losses, objective),
            context=context,
        )
        self.compile_reason = self.stopped = ""
        self._has_stopped = False
        self._stepper = Stepper(model, self.method, averager, self._settings, self.hardware, optimisers, schedulers)
        self._meter = Meter(self.method.columns)
        self._alarms = Alarms(self.hardware.notify)
        self._audience = self._make_audience(out, loggers, callbacks)
        self._persistence = Persistence(out, self._stepper, self._meter, self._audience, resumes=resume is not False)
        if resume is not False:
            hardware = self._persistence.resume(resume, self.config).hardware
            self._settings = self._settings.model_copy(update={"hardware": hardware})
        # Nobody knows how many steps of your own will come, so `auto` compiles none.
        mode = self._settings.hardware.compile
        self.method.compile_mode = None if mode == "auto" else mode

    @property
    def run(self) -> Run | None:
        """The run directory; ``None`` where nothing is written."""
        return self._persistence.run

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self._stepper.steps

    @property
    def config(self) -> Config:
        """All settings of the training, as it is played."""
        settings, own = self._settings, self.model.config
        training = settings.training.model_copy(update={"steps": self._stepper.total})
        changes: dict[str, object] = {"training": training}
        if own is not None:
            changes |= {"preset": own.preset, "model": own.model, "discriminator": own.discriminator, "data": own.data}
        elif self.data is not None:
            changes["data"] = DataSettings(spec=self.data.spec)
        return settings.model_copy(update=changes)

    def step(self, batch: Tensor, labels: Tensor | None = None, context: Tensor | None = None) -> dict[str, Tensor]:
        """Take one step by the method: of Algorithm 1, moving both players, unless the method is another.

        Args:
            batch: ``(n, *shape of x)``, two samples or more for each micro-batch.
            labels: The labels of the batch, ``(n,)`` int64, for extra losses that read them.
            context: The context of the batch, ``(n, …)``, if the model takes one; by default the labels.

        Returns:
            The losses by name, ``()`` each, on the device.

        Raises:
            InputError: If the batch does not fit.
        """
        if context is None and self.model.takes_context:
            context = labels
        return self._stepper.step(batch, labels, context)

    def fit(self, steps: int | None = None) -> Model:
        """Train.

        Args:
            steps: How many more steps; by default what is left of the settings' steps. Schedules are planned over all
                steps up to the last of these.

        Returns:
            The model, trained, with its raw weights; those of :attr:`averaged` are usually better.

        Raises:
            InputError: If there are no data, or the run directory cannot be written to.
            StoppedError: If SIGTERM or SIGINT came while a run was written, after the step was finished and saved.
            DivergedError: If losses or gradients stay without finite values, also after a return to a checkpoint.
            ResourceError: If disk or memory do not suffice.
        """
        batches = self._prepare(steps)
        self.stopped, self._has_stopped = "", False
        with ExitStack() as stack:
            stack.enter_context(self.hardware.threads())
            stack.enter_context(explained_shortage(self.hardware.device, self._settings.training.batch_size))
            stack.enter_context(self.hardware.processes.explained_silence())
            stack.enter_context(self._persistence.writing(self.config))
            signals = stack.enter_context(Signals(are_wanted=self.run is not None))
            stack.enter_context(self._audience.attending())
            self._persistence.save_first(self.config)
            while self.steps < self._stepper.total and not self._has_stopped:
                self._play(batches, signals)
        self.method.finish()
        return self.model

    def stop(self, reason: str) -> None:
        """End :meth:`fit` after the present step, with a checkpoint and the model saved; for callbacks.

        Args:
            reason: Why, in words; see :attr:`stopped`.
        """
        self.stopped = reason

    def plan(self, steps: int | None = None) -> Plan | None:
        """Estimate what :meth:`fit` will cost: a few steps and an evaluation are played and taken back.

        Args:
            steps: How many more steps; by default what is left of the settings' steps.

        Returns:
            The estimate; ``None`` if the steps are too few to be worth it.

        Raises:
            InputError: If there are no data.
            ResourceError: If memory does not suffice.
        """
        self._prepare(steps)
        return self._rehearsed() if is_worth_a_rehearsal(self._stepper) else None

    def steps_within(self, minutes: float) -> int:
        """The number of steps to give to :meth:`fit` for a training that takes a time from now on.

        The rate is measured by rehearsals, which are taken back, and count as part of the time. The number differs from
        one measurement to the next; a training with a given number can be repeated.

        Args:
            minutes: The time.

        Raises:
            InputError: If there are no data, or the time does not allow one step and an evaluation.
            ResourceError: If memory does not suffice.
        """
        settings = self._settings

        def rehearsed(steps: int, seconds: float) -> Plan:
            self._settings = settings  # whether steps are compiled is decided for each number
            self._prepare(steps)
            return self._rehearsed(seconds)

        every = settings.record.evaluate_every
        return steps_within(60 * minutes, every, self.hardware.processes, rehearsed)

    def save(self) -> None:
        """Write a checkpoint of the steps so far into the run directory.

        Raises:
            ResourceError: If the disk is full.
            InputError: If there is no run directory, or it cannot be written to.
        """
        self._persistence.save(self.config)

    def _rehearsed(self, seconds: float = 0.0) -> Plan:
        """Rehearse the steps to come; the kinds of steps are timed for so many seconds."""
        assert self._batches is not None
        total, every = self._stepper.total, self._settings.record.evaluate_every
        evaluation = self._evaluation(Alarms(lambda _: None), None)
        with (
            self.hardware.threads(),
            explained_shortage(self.hardware.device, self._settings.training.batch_size),
            self.hardware.processes.explained_silence(),
            self._batches.starting_at(self.steps) as prepared,
        ):
            return rehearse(
                self._stepper,
                self._persistence.snapshot,
                prepared,
                partial(evaluation, self.steps, is_last=False),
                -(-total // every) - self.steps // every,
                seconds=seconds,
            )

    def _prepare(self, steps: int | None) -> Batches:
        """Set the last step, and with it whether steps are compiled; the batches to play."""
        if self._batches is None:
            raise InputError("this trainer has no data: give it some, or play batches of your own with step(batch)")
        planned = self._settings.training.steps
        self._stepper.total = max(planned, self.steps) if steps is None else self.steps + steps
        chosen = fitting_mode(self._settings, self.model, self.hardware.device, self._stepper.total - self.steps)
        self._settings, self.compile_reason = chosen
        self.method.compile_mode = self._settings.hardware.compile
        return self._batches

    def _play(self, batches: Batches, signals: Signals) -> None:
        """Play up to the last step, a stop, or a return to a checkpoint, which needs other batches."""
        record, total = self._settings.record, self._stepper.total
        self._meter.start()
        with batches.starting_at(self.steps) as prepared:
            while self.steps < total:
                losses = self._stepper.step(*next(prepared))
                self._meter.add(losses)
                self._audience.step(losses)
                is_last = self.steps == total
                evaluates = is_last or self.steps % record.evaluate_every == 0
                if evaluates or self.steps % record.log_every == 0:
                    counts = self._stepper.guard.read()
                    if counts.most_in_row >= record.max_skipped_steps:
                        self._persistence.go_back(counts)
                        return
                    self._report(counts.skipped, evaluates=evaluates)
                asked = signals.caught or (_STOP if self.stopped else None)
                caught = self.hardware.processes.agree_on_signal(asked, self.steps)
                is_due = is_last or caught or self.steps % record.checkpoint_every == 0
                # A step after a skipped one might never be finite again; the checkpoint before it leads here as well.
                if self.run and is_due and not self._stepper.guard.is_skipping:
                    self.save()
                if caught == _STOP:
                    self._has_stopped = True
                    self._persistence.average_statistics()
                    self._persistence.save_model(self.config)
                    return
                if caught and not is_last:
                    raise self._persistence.stopped(caught, self.config)

    def _report(self, skipped: int, *, evaluates: bool) -> None:
        """Make a record of the steps since the last one."""
        losses, rate = self._meter.read(self.hardware.processes)
        if evaluates:
            self._persistence.average_statistics()
        if self.hardware.processes.rank != 0:
            return
        measured, per_level = self._evaluate() if evaluates else ({}, {})
        record = Record.of(
            losses | measured,
            step=self.steps,
            seconds=self._meter.seconds(),
            skipped=skipped,
            steps_per_second=rate,
            images_per_second=rate * self._settings.training.batch_size,
            **per_level,
        )
        if evaluates:
            name = self._settings.record.best_by
            value = metric_of(record, name, latents_of(self.model))
            self._persistence.score(value if value is None or not prefers_higher(name) else -value)
        if self._persistence.writer:
            self._persistence.writer.record(record)
        if self._on_record:
            self._on_record(record)
        self._audience.record(record)
        if self._settings.game.objective != "wasserstein":  # its logits are no log-odds, so ρ means nothing
            self._alarms.look_at(record)
        self._meter.start_lap()

    def _evaluate(self) -> tuple[dict[str, float], dict[str, Any]]:
        """Measure held-out data and the decoder's samples, and save the model."""
        is_seen = self._persistence.writer is not None or self._audience.sees_pictures
        evaluation = self._evaluation(self._alarms, self._show if is_seen else None)
        found = evaluation(self.steps, is_last=self.steps == self._stepper.total)
        self._persistence.save_model(self.config)
        return found

    def _show(self, pictures: Pictures) -> None:
        if self._persistence.writer:
            self._persistence.writer.pictures(pictures, self.steps)
        self._audience.pictures(pictures)

    def _evaluation(self, alarms: Alarms, show: Callable[[Pictures], None] | None) -> Evaluation:
        assert self.data is not None
        return Evaluation(
            self.method,
            self.averaged,
            self.model.discriminator,
            self.data,
            self._context,
            self._settings.training.seed,
            alarms,
            show,
        )

    def _make_audience(
        self, out: str | Path | None, loggers: Sequence[Any] | None, callbacks: Sequence[Callback]
    ) -> Audience:
        """The callbacks and loggers that were given or that the settings name."""
        record = self._settings.record
        for place in ("best_by", "stop_metric"):
            check_metric(getattr(record, place), f"record.{place}", self._settings, self.model, self.method)
        for callback in callbacks:
            if isinstance(callback, EarlyStopping):
                check_metric(callback.metric, "EarlyStopping(metric)", self._settings, self.model, self.method)
        is_first = self.hardware.processes.rank == 0
        if loggers is None:
            loggers = named_loggers(record.loggers, Run(out)) if out is not None and is_first else ()
        stopping = [EarlyStopping(record.stop_metric, patience=record.stop_after)] if record.stop_after else []
        return Audience(self, [*callbacks, *stopping], Loggers(loggers, latents_of(self.model)), is_first=is_first)

    def _make_batches(self, augmentation: datasets.Augmentation | datasets.OwnAugmentation) -> Batches | None:
        if self.data is None:
            return None
        shape, training = self.model.hierarchy.spaces[0].shape, self._settings.training
        if self.data.shape != shape:
            raise InputError(f"the model is for data of shape {shape}, but {self.data.spec} has {self.data.shape}")
        if training.batch_size < 2:
            raise InputError("training.batch_size must be at least 2: batch statistics need a batch")
        return Batches(
            self.data,
            augmentation,
            self.hardware,
            size=training.batch_size,
            seed=training.seed,
            prefetch=self._settings.hardware.prefetch,
            context=self._context,
        )

    def _some_context(self) -> Tensor | None:
        """Some rows of a context, if any are known: the first of the data, or an example."""
        if self.data is not None and self._context is not None:
            return self.data.train.context(self._context)[:4]
        return self.model.example_context(4)
