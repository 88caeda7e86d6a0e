"""The trainer: trains by one method over a data set, on a schedule, and keeps a record."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halikit import data as datasets
from halikit.analysis.reconstruction import distances
from halikit.analysis.recovery import recovery
from halikit.config import Config, DataConfig, TrainingConfig
from halikit.discriminator import JointDiscriminator
from halikit.errors import DivergedError, InputError, StoppedError
from halikit.hierarchy import Hierarchy
from halikit.kernels import Kernel
from halikit.model import Model, fill, named_tensors
from halikit.random import seeded
from halikit.sleep import sleep_weights
from halikit.training.averaging import Averager
from halikit.training.checkpoint import Checkpoint, CheckpointError, Checkpoints, State, find_checkpoint
from halikit.training.guard import Counts, Guard
from halikit.training.health import Health
from halikit.training.lock import locked
from halikit.training.memory import explained_shortage, keep_freed
from halikit.training.meter import Meter
from halikit.training.methods import Outcome, make_method
from halikit.training.optimisers import fill_optimiser, make_optimisers, optimiser_tensors
from halikit.training.processes import Processes
from halikit.training.resume import check_same_model, notices, surroundings
from halikit.training.run import Record, Run
from halikit.training.schedule import Schedule
from halikit.training.signals import Signals

__all__ = ["Trainer"]

# Batches made ready in advance: the one that comes next, and one that is made meanwhile.
_PREFETCHED = 2
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
        resume: Go on with the run in ``out``: ``True`` from its newest good checkpoint, a number from the checkpoint
            of that step, a path from the checkpoint there, of whichever run.
        on_record: Called with each :class:`~halikit.training.run.Record`.
        on_notice: Called with what a person should know; warnings by default.

    Raises:
        InputError: If data, settings and model do not fit each other, or there is nothing to go on with.

    Attributes:
        averaged: The hierarchy with averaged weights, in evaluation mode.
        processes: Those that train together.
        steps: Steps played so far.
        memory_format: How feature maps lie in memory.
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
        resume: bool | int | str | Path = False,
        on_record: Callable[[Record], None] | None = None,
        on_notice: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.model = model
        self.settings, said = _resolved(
            settings or (model.config.training if model.config else TrainingConfig()), model.hierarchy
        )
        self.processes = Processes(self.settings.device, self.settings.timeout)
        self.device = self.processes.device
        if self.device.type == "cpu":
            keep_freed()
        self.data = _on(self.device, data, model.config.data.size if model.config else None)
        self.augmentation = augmentation or (model.config or Config()).data.augmentation()
        self._check()
        self.memory_format = _memory_format(model, self.settings, self.device)
        for module in model.parts.values():
            module.to(self.device).train()
            if self.memory_format == torch.channels_last:
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for part in module.modules():
                if isinstance(part, Kernel | JointDiscriminator):
                    part.recomputes = self.settings.recompute
        if self.settings.sync_batch_norm:
            self._synchronise_batch_norm()
        # What is random in it may have been drawn differently in each process.
        self.processes.spread(t for part in model.parts.values() for t in part.state_dict().values())
        self.averager = Averager(model.hierarchy, self.settings.averaging)
        self._method = make_method(model, self.settings, self.data, self.augmentation, self.averaged, self.processes)
        self.steps = 0
        self.schedule = Schedule(self.settings, self.settings.steps)
        self._optimisers = make_optimisers(model, self.settings)
        self._rates = [optimiser.param_groups[0]["lr"] for optimiser in self._optimisers]
        self._guard = Guard((model.parts | self._method.kept).values(), self.processes)
        self._meter = Meter(len(self._method.columns))
        # What the best checkpoint is chosen by, where this very step was evaluated.
        self._score: float | None = None
        # Lower once training had to go back to a checkpoint.
        self._rate_share = 1.0
        self._on_record = on_record
        self._notify = on_notice if self.processes.is_first else _say_nothing
        if self.settings.precision == "bf16" and _emulates_bf16(self.device):
            self._notify("this CPU has no bfloat16 in hardware: precision = '32' is many times faster")
        for notice in said:
            self._notify(notice)
        self._health = Health(self._notify)
        resumes = resume is not False
        if out is None and resumes:
            raise InputError("resume goes on with the run in a directory: give it as out")
        # All of several processes read checkpoints; the first alone writes.
        self._checkpoints = None if out is None else Checkpoints(Path(out), self.settings.keep)
        self.run = None
        if out is not None and self.processes.is_first:
            self.run = Run(out, model, keep=self.settings.keep, resumes=resumes)
        if self._checkpoints and resumes:
            with locked(self.run.path) if self.run else nullcontext():
                self._resume(find_checkpoint(self._checkpoints, resume, self._notify))
            self.processes.wait()

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
            steps: How many more steps; by default what is left of the settings' steps. Rates are planned over all
                steps up to the last of these.

        Returns:
            The model, trained, with its raw weights; those of :attr:`averaged` are usually better.

        Raises:
            InputError: If there are no data, or the run directory cannot be written to.
            StoppedError: If SIGTERM or SIGINT came while a run was written, after the step was finished and saved.
            DivergedError: If losses or gradients stay without finite values, also after a return to a checkpoint.
            ResourceError: If disk or memory do not suffice.
        """
        if self.data is None:
            raise InputError("this trainer has no data: give it some, or play batches of your own with step(batch)")
        total = max(self.settings.steps, self.steps) if steps is None else self.steps + steps
        self.schedule = Schedule(self.settings, total)
        with ExitStack() as stack:
            stack.enter_context(_threads(self.settings.threads))
            stack.enter_context(explained_shortage(self.device, self.settings.batch_size))
            stack.enter_context(self.processes.explained_silence())
            if self.run:
                stack.enter_context(self.run.writing(self.config, self.steps, self._size()))
                if not self.run.checkpoints.steps():
                    self.run.checkpoint(self._state())
            self._fit(total, stack.enter_context(Signals(are_wanted=self._checkpoints is not None)))
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

    def save(self) -> None:
        """Write a checkpoint of the steps played so far into the run directory.

        Raises:
            ResourceError: If the disk is full.
            InputError: If there is no run directory, or it cannot be written to.
        """
        if self._checkpoints is None:
            raise InputError("this trainer writes no run: give it a directory as out")
        self._average_statistics()
        if self.run:
            self.run.checkpoint(self._state())

    def _fit(self, total: int, signals: Signals) -> None:
        while self.steps < total:
            with self._prefetched() as batches:
                self._play_on(total, signals, batches)

    def _play_on(self, total: int, signals: Signals, batches: Iterator[Tensor]) -> None:
        """Play up to step ``total``, or until a return to a checkpoint needs other batches."""
        settings = self.settings
        self._meter.start()
        while self.steps < total:
            self._meter.add(self.step(next(batches)))
            is_last = self.steps == total
            evaluates = is_last or self.steps % settings.evaluate_every == 0
            if evaluates or self.steps % settings.log_every == 0:
                counts = self._guard.read()
                if counts.most_in_row >= settings.max_skipped:
                    self._go_back(counts)
                    return
                self._report(counts, evaluates)
            caught = self.processes.heard(signals.caught, self.steps)
            is_due = is_last or caught or self.steps % settings.checkpoint_every == 0
            # What follows a skipped step might never be finite again; the checkpoint before it leads here as well.
            if self._checkpoints and is_due and not self._guard.is_skipping:
                self.save()
            if caught and not is_last:
                raise self._stopped(caught)

    def _report(self, counts: Counts, evaluates: bool) -> None:
        """Make a record of the steps since the last one."""
        means, rate = self._meter.read(self.processes)
        if evaluates:
            self._average_statistics()
        if not self.processes.is_first:
            return
        measured = self._evaluate() if evaluates else {}
        measured |= zip(self._method.columns, means, strict=True)
        record = Record(
            step=self.steps,
            seconds=self._meter.seconds(),
            skipped=counts.skipped,
            steps_per_second=rate,
            images_per_second=rate * self.settings.batch_size,
            **measured,
        )
        if self.run:
            self.run.record(record)
        if self._on_record:
            self._on_record(record)
        self._health.look_at(record)
        self._meter.lap()

    def _go_back(self, counts: Counts) -> None:
        """Go on from the newest checkpoint at half the rates; the second time that this is called for is the end.

        Raises:
            DivergedError: If there is no run to go back in, or training has gone back before.
        """
        trouble = f"losses or gradients were not finite in {counts.most_in_row} steps in a row before step {self.steps}"
        if self._checkpoints is None or self._rate_share < 1:
            raise DivergedError(
                f"{trouble}; try a lower learning rate or more input noise" + self._dumped(trouble, counts)
            )
        self._restore(self._checkpoints.newest(self._notify))
        self.processes.wait()
        if self.run:
            self.run.rewind(self.steps)
        self._rate_share = 0.5
        self._notify(f"{trouble}; going back to step {self.steps}, with half the learning rates from there on")

    def step(self, batch: Tensor) -> Outcome:
        """Take one step: of Algorithm 1, moving both players, unless the method is another.

        Args:
            batch: ``(n, *shape of x)``, two samples or more for each micro-batch.

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
        if len(batch) % settings.accumulate or len(batch) < 2 * settings.accumulate:
            raise InputError(
                f"training.accumulate={settings.accumulate} divides a batch into as many equal parts of two samples or "
                f"more, got a batch of {len(batch)}"
            )
        rate = self.schedule.rate(self.steps) * self._rate_share
        for optimiser, full in zip(self._optimisers, self._rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = full * rate
            optimiser.zero_grad()
        if settings.compile:
            # Whatever earlier steps have left in the memory of CUDA graphs may be written over: nobody reads it again.
            torch.compiler.cudagraph_mark_step_begin()
        self._guard.before_step()
        # The noise of a step depends on nothing that went before; the caller's generators are given back.
        with (
            seeded(_noise_seed(settings.seed, self.steps, self.processes.rank), self.device),
            torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"),
        ):
            outcome = self._add_gradients(batch.to(self.device))
        self._guard.after_gradients(outcome, self._optimisers)
        for optimiser in self._optimisers:
            optimiser.step()
        self.steps += 1
        self._score = None
        self.averager.update(self.steps)
        return outcome

    def _add_gradients(self, batch: Tensor) -> Outcome:
        """Those of the mean loss of the micro-batches, one after the other; gives the means of what these come to."""
        *parts, last = batch.chunk(self.settings.accumulate)
        outcomes = []
        with self._method.apart() if parts else nullcontext():
            for part in parts:
                outcomes.append(self._method.step(self._laid_out(part), self.steps, self.schedule))
        outcomes.append(self._method.step(self._laid_out(last), self.steps, self.schedule))
        if not parts:
            return outcomes[0]
        parameters = (p for optimiser in self._optimisers for group in optimiser.param_groups for p in group["params"])
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1 / len(outcomes))
        means = (torch.stack(values).mean(0) for values in zip(*outcomes, strict=True))
        return type(outcomes[0])(*means)

    def _laid_out(self, batch: Tensor) -> Tensor:
        """The batch in the memory format of the model; vectors as they are."""
        return batch.contiguous(memory_format=self.memory_format) if batch.dim() == 4 else batch

    def _evaluate(self) -> dict[str, Any]:
        """What a record has of held-out data and of the decoder's samples; pictures and the model into the run."""
        assert self.data is not None
        with torch.no_grad():
            with seeded(self.settings.seed, self.device):
                measured: dict[str, Any] = self._method.measure(self.averaged, self.data.held_out[:_HELD_OUT])
            looked_at = self._look_at_decoder(self._held_out()) if self._method.decodes else {}
            if self.run:
                self._save_model()
        self._score = fmean(looked_at["errors"] if looked_at else measured.values())
        return measured | looked_at

    def _held_out(self) -> Tensor:
        """The data that evaluations look at."""
        assert self.data is not None
        part = self.data.held_out
        return part.batch(torch.arange(min(_HELD_OUT, len(part)), device=self.device))

    def _look_at_decoder(self, x: Tensor) -> dict[str, tuple[float, ...]]:
        """What a record has for each level; samples and reconstructions are drawn into the run."""
        averaged = self.averaged
        found = distances(averaged, self.model.discriminator, x)
        with seeded(self.settings.seed, self.device):
            samples = averaged.sample(_SHOWN**2 // 2)
            recovered = recovery(averaged, _HELD_OUT)
        self._health.look_at_samples(samples, x, self.steps)
        names = [space.name for space in averaged.spaces[1:]]
        if self.steps == self.schedule.total:
            self._health.look_at_recovery(dict(zip(names, recovered.in_one_step, strict=True)))
        if self.run:
            rebuilt = {name: averaged.reconstruct(x[:_SHOWN], level) for level, name in enumerate(names, 1)}
            self.run.pictures(samples, {"x": x[:_SHOWN]} | rebuilt, self.steps)
        return {
            "errors": tuple(found.euclidean.square().mean(1).sqrt().tolist()),
            "embedded": () if found.embedded is None else tuple(found.embedded.mean(1).tolist()),
            "recovery": recovered.in_one_step,
            "recovery_from_x": recovered.from_x,
        }

    def _average_statistics(self) -> None:
        """Let running statistics be what all processes have seen, before they are used or saved."""
        modules = self._modules().values()
        self.processes.average(b for module in modules for b in module.buffers() if b.is_floating_point())

    def _synchronise_batch_norm(self) -> None:
        if self.device.type != "cuda":
            raise InputError(f"training.sync_batch_norm is for GPUs; this training is on {self.device}")
        for part in self.model.parts.values():
            nn.SyncBatchNorm.convert_sync_batchnorm(part)

    def _save_model(self) -> None:
        assert self.run
        self.run.save(self.averaged, self.config if self.model.config else None, self.steps)

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Stand where the checkpoint was written, and say what has changed since.

        Raises:
            InputError: If it is of another architecture.
        """
        before = Config.parse(checkpoint.facts["config"], str(checkpoint.path))
        if self.model.config:
            check_same_model(before, self.config)
        self._restore(checkpoint)
        with _threads(self.settings.threads):
            now = surroundings(self.device, self.processes.world)
        for notice in notices(checkpoint.facts, before, self.config, now):
            self._notify(notice)

    def _stopped(self, number: int) -> StoppedError:
        """Write the model as it stands, for those who want to look at it, and say how to go on."""
        assert self._checkpoints
        self._average_statistics()
        if self.run:
            self._save_model()
        path, name = self._checkpoints.path.parent, signal.Signals(number).name
        newest = self._checkpoints.steps()[-1]
        return StoppedError(
            f"{name} at step {self.steps}; saved up to step {newest} in {path}\n"
            f"go on with: halikit train --resume --out {path}",
            number,
        )

    def _dumped(self, trouble: str, counts: Counts) -> str:
        """Write what is known of a divergence into the run directory, if there is one; says where."""
        if self.run is None:
            return ""
        parameters = {
            f"{part}.{name}": p for part, module in self.model.parts.items() for name, p in module.named_parameters()
        }
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        path = self.run.dump(
            {
                "trouble": trouble,
                "step": self.steps,
                "skipped": counts.skipped,
                "learning_rates": [[group["lr"] for group in optimiser.param_groups] for optimiser in self._optimisers],
                "gradients_not_finite": [name for name, g in gradients.items() if not g.isfinite().all()],
                "weights_not_finite": [name for name, p in parameters.items() if not p.isfinite().all()],
                "checkpoints": self.run.checkpoints.steps(),
            }
        )
        return f"\nwhat is known is in {path}: halikit inspect {self.run.path}"

    def _size(self) -> int:
        """Bytes that a checkpoint will take: all weights, and twice those that are trained for their optimisers."""
        trained = sum(p.nbytes for part in self.model.parts.values() for p in part.parameters() if p.requires_grad)
        return 2 * trained + sum(tensor.nbytes for tensor in named_tensors(self._modules()).values())

    def _state(self) -> State:
        """All that the steps to come depend on, and what records to come will."""
        facts = {
            "step": self.steps,
            "seconds": self._meter.seconds(),
            "rate_share": self._rate_share,
            "config": self.config.model_dump(mode="json"),
            "surroundings": surroundings(self.device, self.processes.world),
        }
        tensors = named_tensors(self._modules())
        for (name, part), optimiser in zip(self.model.parts.items(), self._optimisers, strict=True):
            tensors |= optimiser_tensors(optimiser, part, f"optimiser.{name}")
        tensors |= {"skipped": self._guard.counts, "unread": self._meter.unread()}
        return State(tensors, facts, self._score)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Stand where the checkpoint was written.

        Raises:
            InputError: If it is not of this model.
        """
        path, tensors, facts = checkpoint.path, checkpoint.tensors(), checkpoint.facts
        for name, module in self._modules().items():
            # What a method keeps begins anew where the settings ask for it since.
            if name not in self._method.kept or any(key.startswith(f"{name}.") for key in tensors):
                fill(path, module, tensors, name)
        for (name, part), optimiser in zip(self.model.parts.items(), self._optimisers, strict=True):
            fill_optimiser(path, optimiser, part, tensors, f"optimiser.{name}")
        try:
            self._guard.counts.copy_(tensors["skipped"])
            self._meter.restore(tensors["unread"].to(self.device), facts["seconds"])
        except (KeyError, IndexError, RuntimeError) as error:
            raise CheckpointError(f"{path} does not fit the model: {error}") from None
        self.steps, self._rate_share, self._score = checkpoint.step, facts["rate_share"], None

    def _modules(self) -> dict[str, nn.Module]:
        return self.model.parts | {"averaged": self.averaged} | self._method.kept

    def _batches(self) -> Iterator[Tensor]:
        """Full batches in the order of (seed, epoch), from where the steps played so far have come to.

        Of several processes, each takes its part of every batch.
        """
        assert self.data is not None
        train, size = self.data.train, self.settings.batch_size
        rank, world = self.processes.rank, self.processes.world
        per_epoch = len(train) // size
        epoch, first = divmod(self.steps, per_epoch)
        while True:
            order = datasets.order(len(train), self.settings.seed, epoch).to(train.images.device)
            for i in range(first, per_epoch):
                index = order[i * size + rank : (i + 1) * size : world]
                yield self.augmentation(train.batch(index), index, seed=self.settings.seed, epoch=epoch)
            epoch, first = epoch + 1, 0

    def _prefetched(self) -> AbstractContextManager[Iterator[Tensor]]:
        """The batches, made ready in advance where that takes time."""
        assert self.data is not None
        depth = self.settings.prefetch
        if depth == "auto":
            depth = _PREFETCHED if self.data.train.takes_time else 0
        return datasets.Prefetched(self._batches(), depth, self.device) if depth else nullcontext(self._batches())

    def _check(self) -> None:
        if self.data is None:
            return
        shape = self.model.hierarchy.spaces[0].shape
        if self.data.shape != shape:
            raise InputError(f"the model is for data of shape {shape}, but {self.data.spec} has {self.data.shape}")
        if self.settings.batch_size < 2:
            raise InputError("training.batch_size must be at least 2: batch statistics need a batch")
        share = self.processes.share(self.settings.batch_size)
        if share % self.settings.accumulate or share < 2 * self.settings.accumulate:
            raise InputError(
                f"training.accumulate={self.settings.accumulate} divides the {share} samples that a process takes of a "
                "batch: they must be a multiple of it, and at least twice as many"
            )
        self.data.check_batch(self.settings.batch_size)
        self.augmentation.check(shape)


def _resolved(settings: TrainingConfig, hierarchy: Hierarchy) -> tuple[TrainingConfig, list[str]]:
    """The settings with the weights of the sleep phase written out, and what a person should know about these."""
    if settings.method != "adversarial" or settings.sleep == 0:
        return settings, []
    weights, said = sleep_weights(hierarchy, settings.sleep)
    return settings.model_copy(update={"sleep": weights}), said


def _memory_format(model: Model, settings: TrainingConfig, device: torch.device) -> torch.memory_format:
    """What the settings ask for; by themselves, the one that tensor cores want of convolutions in half precision."""
    wanted = settings.memory_format
    if wanted == "auto":
        convolves = any(isinstance(m, nn.Conv2d) for part in model.parts.values() for m in part.modules())
        halves = convolves and device.type == "cuda" and settings.precision == "bf16"
        wanted = "channels_last" if halves else "contiguous"
    return torch.channels_last if wanted == "channels_last" else torch.contiguous_format


def _emulates_bf16(device: torch.device) -> bool:
    """Whether products in bfloat16 are put together from slower ones: of x86 before AVX-512."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("NO AVX", "AVX2")


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


def _say_nothing(message: str) -> None:
    """What others than the first process say."""


def _noise_seed(seed: int, step: int, rank: int = 0) -> int:
    """One number from (seed, step, rank), which are all that noise depends on."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
