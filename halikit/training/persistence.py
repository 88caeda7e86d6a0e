"""What a training writes, and what it restores: checkpoints, the model, what is known of a divergence."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from halikit.config import Config
from halikit.errors import DivergedError, InputError, StoppedError
from halikit.optimisation.guard import Counts
from halikit.runs.checkpoints import Checkpoint, State, find_checkpoint
from halikit.runs.lock import locked
from halikit.runs.run import Run
from halikit.runs.writer import RunWriter
from halikit.training.callbacks import Audience
from halikit.training.meter import Meter
from halikit.training.resume import adopted, check_same_model, notices, surroundings
from halikit.training.snapshot import Snapshot
from halikit.training.stepper import Stepper

__all__ = ["Persistence"]


class Persistence:
    """Writes checkpoints and the model of a training, and restores its state.

    All processes read checkpoints. Only rank 0 writes.

    Args:
        out: The run directory; ``None`` to write nothing.
        stepper: The training so far: its model, method, optimisers and guard.
        meter: The losses since the last record.
        audience: The callbacks, whose states are part of a checkpoint.
        resumes: Whether the run directory may hold a run already.

    Raises:
        InputError: If a run is to be resumed and there is no directory, or the directory holds another run.

    Attributes:
        run: The run directory; ``None`` where nothing is written.
        writer: Writes its files, in rank 0.
        snapshot: The state of the training.
    """

    def __init__(
        self, out: str | Path | None, stepper: Stepper, meter: Meter, audience: Audience, *, resumes: bool
    ) -> None:
        if out is None and resumes:
            raise InputError("resume goes on with the run in a directory: give it as out")
        self._model, self._averaged = stepper.model, stepper.averager.average
        self._stepper, self._hardware = stepper, stepper.hardware
        self._audience = audience
        self._score: tuple[int, float | None] | None = None
        keep = stepper.settings.record.keep_checkpoints
        self.run = None if out is None else Run(out)
        self._checkpoints = self.run.checkpoints(keep) if self.run else None
        self.writer = None
        if self.run and self._hardware.processes.rank == 0:
            self.writer = RunWriter(self.run, self._model, extra=meter.columns, keep=keep, resumes=resumes)
        extra = {name: module for name, (module, _) in stepper.method.extra_modules.items()}
        modules = self._model.parts | {"averaged": self._averaged} | extra
        self.snapshot = Snapshot(modules, frozenset(extra), stepper.optimisers, stepper.guard, meter)

    def writing(self, config: Config) -> AbstractContextManager[None]:
        """Hold the run directory for a training that goes on from here; a new one begins with a checkpoint."""
        if self.writer is None:
            return nullcontext()
        return self.writer.writing(config, self._stepper.steps, self.snapshot.size)

    def save_first(self, config: Config) -> None:
        """Write a checkpoint where there is none yet, so that any kill can be resumed."""
        if self.writer and not self.writer.checkpoints.steps():
            self._write(config)

    def save(self, config: Config) -> None:
        """Write a checkpoint.

        Raises:
            ResourceError: If the disk is full.
            InputError: If there is no run directory, or it cannot be written to.
        """
        if self.run is None:
            raise InputError("this trainer writes no run: give it a directory as out")
        self.average_statistics()
        self._write(config)

    def score(self, value: float | None) -> None:
        """Remember the result of an evaluation of this step: the best checkpoint is the one with the lowest."""
        self._score = (self._stepper.steps, value)

    def save_model(self, config: Config) -> None:
        """Write the model as it is now."""
        if self.writer:
            self.writer.save(self._averaged, config if self._model.config else None, self._stepper.steps)

    def average_statistics(self) -> None:
        """Average running statistics over all processes, before they are used or saved."""
        modules = self.snapshot.modules.values()
        self._hardware.processes.average(b for module in modules for b in module.buffers() if b.is_floating_point())

    def resume(self, which: bool | int | str | Path, config: Config) -> Config:
        """Restore a checkpoint, and say what has changed since.

        Args:
            which: ``True`` for the newest good checkpoint, a step, or the path of a checkpoint.
            config: The settings to go on with.

        Returns:
            The settings, with ``auto`` replaced by what it stood for before.

        Raises:
            InputError: If there is no such checkpoint, or it is of another architecture.
        """
        assert self.run and self._checkpoints
        with locked(self.run.path) if self.writer else nullcontext():
            checkpoint = find_checkpoint(self._checkpoints, which, self._hardware.notify)
            before = Config.parse(checkpoint.facts["config"], str(checkpoint.path))
            if self._model.config:
                check_same_model(before, config)
            self._restore(checkpoint)
        self._hardware.processes.wait()
        config = adopted(before, config)
        for notice in notices(checkpoint.facts, before, config, self._surroundings()):
            self._hardware.notify(notice)
        return config

    def go_back(self, counts: Counts) -> None:
        """Return to the newest checkpoint at half the rates; the second time ends the training.

        Raises:
            DivergedError: If there is no run to go back in, or training has gone back before.
        """
        stepper = self._stepper
        trouble = (
            f"losses or gradients were not finite in {counts.most_in_row} steps in a row before step {stepper.steps}"
        )
        if self._checkpoints is None or stepper.rate_share < 1:
            advice = "try a lower learning rate or more input noise"
            raise DivergedError(f"{trouble}; {advice}{self._describe_divergence(trouble, counts)}")
        self._restore(self._checkpoints.newest(self._hardware.notify))
        self._hardware.processes.wait()
        if self.writer:
            self.writer.rewind(stepper.steps)
        self._audience.rewind()
        stepper.rate_share = 0.5
        self._hardware.notify(
            f"{trouble}; going back to step {stepper.steps}, with half the learning rates from there on"
        )

    def stopped(self, number: int, config: Config) -> StoppedError:
        """Write the model as it is, for those who want to look at it, and say how to go on after a signal."""
        assert self.run and self._checkpoints
        self.average_statistics()
        self.save_model(config)
        newest = self._checkpoints.steps()[-1]
        name, step = signal.Signals(number).name, self._stepper.steps
        return StoppedError(
            f"{name} at step {step}; saved up to step {newest} in {self.run.path}\n"
            f"go on with: halikit train --resume --out {self.run.path}",
            number,
        )

    def _write(self, config: Config) -> None:
        if self.writer:
            stepper = self._stepper
            score = self._score[1] if self._score and self._score[0] == stepper.steps else None
            state = self.snapshot.take(stepper.steps, config, self._surroundings(), stepper.rate_share)
            facts = {**state.facts, "callbacks": self._audience.states(), "is_built": self._model.config is not None}
            metric = config.record.best_by
            self._audience.checkpoint(self.writer.checkpoint(State(state.tensors, facts, score, metric)))

    def _restore(self, checkpoint: Checkpoint) -> None:
        facts = self.snapshot.restore(checkpoint, self._hardware.device)
        self._stepper.steps, self._stepper.rate_share = checkpoint.step, facts["rate_share"]
        self._audience.restore(facts.get("callbacks", []))

    def _surroundings(self) -> dict[str, str]:
        with self._hardware.threads():
            return surroundings(self._hardware.device, self._hardware.processes.world)

    def _describe_divergence(self, trouble: str, counts: Counts) -> str:
        """Write what is known of a divergence into the run directory, if there is one; says where."""
        if self.writer is None or self.run is None:
            return ""
        parameters = {
            f"{part}.{name}": p for part, module in self._model.parts.items() for name, p in module.named_parameters()
        }
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        optimisers = [part.optimiser for part in self._stepper.optimisers.values()]
        path = self.writer.dump(
            {
                "trouble": trouble,
                "step": self._stepper.steps,
                "skipped": counts.skipped,
                "learning_rates": [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers],
                "gradients_not_finite": [name for name, g in gradients.items() if not g.isfinite().all()],
                "weights_not_finite": [name for name, p in parameters.items() if not p.isfinite().all()],
                "checkpoints": self.writer.checkpoints.steps(),
            }
        )
        return f"\nwhat is known is in {path}: halikit inspect {self.run.path}"
