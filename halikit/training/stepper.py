"""One step of training: gradients, the guard against NaN, optimisers, the moving average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from halikit.config import Config
from halikit.errors import InputError
from halikit.hardware.hardware import Hardware
from halikit.model import Model
from halikit.optimisation.ema import Averager
from halikit.optimisation.guard import Guard
from halikit.optimisation.optimisers import rate_share
from halikit.optimisation.parts import OptimiserFactory, PartOptimiser, SchedulerFactory
from halikit.training.method import Method
from halikit.utils.random import derived_seed, seeded

__all__ = ["Stepper"]


class Stepper:
    """Takes the steps of a training.

    Args:
        model: The model.
        method: The method, which computes the gradients of a step.
        averager: The moving average of the weights.
        settings: The settings of the training.
        hardware: Where the steps run.
        optimisers: Makes optimisers of the user's own.
        schedulers: Makes schedules of the user's own.

    The first five arguments are attributes too.

    Attributes:
        steps: Steps so far.
        total: Steps that the schedules are planned over.
        rate_share: Share of the learning rates; lower once training had to go back to a checkpoint.
        optimisers: An optimiser for each module that trains, by the name of the module.
        guard: Skips steps that give NaN or Inf.
    """

    def __init__(
        self,
        model: Model,
        method: Method,
        averager: Averager,
        settings: Config,
        hardware: Hardware,
        optimisers: OptimiserFactory | None = None,
        schedulers: SchedulerFactory | None = None,
    ) -> None:
        self.model, self.method, self.averager = model, method, averager
        self.settings, self.hardware = settings, hardware
        self._shape = model.hierarchy.spaces[0].shape
        self.steps, self.total, self.rate_share = 0, settings.training.steps, 1.0
        players = {name: (part, name) for name, part in model.parts.items()} | method.extra_modules
        self.optimisers = {
            name: PartOptimiser(name, part, player, settings.optimiser, optimisers, schedulers)
            for name, (part, player) in players.items()
            if name in model.parts or any(True for _ in part.parameters())
        }
        self.guard = Guard((part for part, _ in players.values()), hardware.processes)

    def step(self, batch: Tensor, labels: Tensor | None = None, context: Tensor | None = None) -> dict[str, Tensor]:
        """Take one step.

        Args:
            batch: ``(n, *shape of x)``.
            labels: ``(n,)`` int64, if there are any.
            context: ``(n, …)``, if the model takes one.

        Returns:
            The losses by name, ``()`` each, on the device.

        Raises:
            InputError: If the batch does not fit.
        """
        self._check_batch(batch, labels, context)
        for part in self.optimisers.values():
            part.optimiser.zero_grad()
        if self.method.compile_mode:
            # CUDA graphs may now write over the memory of earlier steps: nobody reads it again.
            torch.compiler.cudagraph_mark_step_begin()
        self.guard.before_step()
        # The noise of a step depends on (seed, step, rank) alone; the caller's generators are restored.
        seed = derived_seed(self.settings.training.seed, self.steps, self.hardware.processes.rank)
        with seeded(seed, self.hardware.device), self.hardware.autocast():
            x = batch.to(self.hardware.device, self.model.hierarchy.prior.dtype)
            if context is not None and context.is_floating_point():
                context = context.to(x)
            losses = self._add_gradients(x, labels, context)
        is_bad = self.guard.after_gradients(losses.values())
        scheduled = rate_share(self.settings.optimiser, self.steps, self.total)
        for part in self.optimisers.values():
            part.step(is_bad, self.rate_share, scheduled)
        self.steps += 1
        self.averager.update(self.steps)
        return losses

    def _check_batch(self, batch: Tensor, labels: Tensor | None, context: Tensor | None) -> None:
        shape, accumulate = self._shape, self.settings.hardware.accumulate
        if batch.shape[1:] != shape or len(batch) < 2:
            wanted = ", ".join(map(str, shape))
            raise InputError(f"a training batch is (n, {wanted}) with n ≥ 2, got {tuple(batch.shape)}")
        if labels is not None and labels.shape != batch.shape[:1]:
            raise InputError(f"a batch of {len(batch)} has labels ({len(batch)},), got {tuple(labels.shape)}")
        if self.model.takes_context and (context is None or len(context) != len(batch)):
            got = "none" if context is None else f"one of {tuple(context.shape)}"
            raise InputError(f"the model takes a context with {len(batch)} rows, one for each datum; got {got}")
        if len(batch) % accumulate or len(batch) < 2 * accumulate:
            raise InputError(
                f"hardware.accumulate={accumulate} divides a batch into as many equal parts of two samples or more, "
                f"got a batch of {len(batch)}"
            )

    def _add_gradients(self, batch: Tensor, labels: Tensor | None, context: Tensor | None) -> dict[str, Tensor]:
        """The gradients of the mean loss of the micro-batches, averaged over processes; returns the mean losses."""
        number = self.settings.hardware.accumulate
        parts = batch.chunk(number)
        beside = ([None] * number if t is None else t.to(batch.device).chunk(number) for t in (labels, context))
        found = [
            self.method.add_gradients(self.hardware.layout(x), y, self.steps, self.total, context=c)
            for x, y, c in zip(parts, *beside, strict=True)
        ]
        parameters = [
            p for part in self.optimisers.values() for group in part.optimiser.param_groups for p in group["params"]
        ]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if number > 1 and gradients:
            torch._foreach_mul_(gradients, 1 / number)
        self.hardware.processes.average_gradients(parameters)
        if number == 1:
            return found[0]
        return {name: torch.stack([losses[name] for losses in found]).mean(0) for name in found[0]}
