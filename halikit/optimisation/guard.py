"""The guard against NaN and Inf: a step with a loss or gradient that is not finite changes no weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from halikit.hardware.processes import Processes

__all__ = ["Counts", "Guard"]


class Counts(NamedTuple):
    """Counts of skipped steps.

    Attributes:
        skipped: All skipped steps so far.
        in_row: Consecutive skipped steps up to now.
        most_in_row: Most consecutive skipped steps since the last :meth:`Guard.read`.
    """

    skipped: int
    in_row: int
    most_in_row: int


class Guard:
    """Skips steps whose losses or gradients are not finite, and counts them, without synchronising with the device.

    Args:
        modules: The modules that are trained. Their running statistics are restored after a skipped step.
        processes: The processes that train together. If one has to skip a step, all skip it.

    Attributes:
        counts: :class:`Counts`, ``(3,)`` on the device.
    """

    def __init__(self, modules: Iterable[nn.Module], processes: Processes) -> None:
        modules = list(modules)
        self._buffers = [b for m in modules for b in m.buffers() if b.is_floating_point()]
        self._saved = [buffer.clone() for buffer in self._buffers]
        self._parameters = [p for m in modules for p in m.parameters()]
        self._processes = processes
        self._one = torch.ones((), dtype=torch.float32, device=processes.device)
        self.counts = torch.zeros(len(Counts._fields), device=processes.device)

    def before_step(self) -> None:
        """Copy the running statistics, to restore them if the step is skipped."""
        if self._buffers:
            torch._foreach_copy_(self._saved, self._buffers)

    def after_gradients(self, losses: Iterable[Tensor]) -> Tensor:
        """Decide whether to skip the step; if so, restore the running statistics.

        Args:
            losses: The losses of the step, scalars on the device.

        Returns:
            Flag for the optimisers, ``()`` on the device: 1 if they have to skip the step, else 0.
        """
        is_bad = 1 - torch.stack(list(losses)).isfinite().all().float()
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if gradients:
            # The check of torch's gradient scaler. With a scale of one it does not change the gradients.
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, is_bad, self._one)
        self._processes.maximum(is_bad)
        self._restore(is_bad)
        skipped, in_row, most = self.counts.unbind()
        in_row = (in_row + 1) * is_bad
        self.counts = torch.stack([skipped + is_bad, in_row, torch.maximum(most, in_row)])
        return is_bad

    def read(self) -> Counts:
        """The counts; synchronises with the device."""
        counts = Counts(*map(int, self.counts.tolist()))
        self.counts[2] = self.counts[1]
        return counts

    @property
    def is_skipping(self) -> bool:
        """Whether the last step was skipped; synchronises with the device."""
        return bool(self.counts[1])

    def _restore(self, is_bad: Tensor) -> None:
        if not self._buffers:
            return
        if is_bad.device.type != "cpu":
            restored = [torch.where(is_bad.bool(), a, b) for a, b in zip(self._saved, self._buffers, strict=True)]
            torch._foreach_copy_(self._buffers, restored)
        elif is_bad:  # on a CPU this needs no synchronisation
            torch._foreach_copy_(self._buffers, self._saved)
