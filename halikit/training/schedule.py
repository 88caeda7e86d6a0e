"""What changes with the step: who plays, which rate, how much noise. All count steps, never seconds."""

from __future__ import annotations

from dataclasses import dataclass

from halikit.algorithm import Players
from halikit.config import TrainingConfig

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """The plan of a training of ``total`` steps, numbered from 0.

    Attributes:
        settings: What it follows.
        total: Steps in all.
    """

    settings: TrainingConfig
    total: int

    def players(self, step: int) -> Players:
        """Who moves in this step: both at once, or in rounds of ``d_steps`` and then ``g_steps``."""
        d, g = self.settings.d_steps, self.settings.g_steps
        if d == g == 1:
            return "both"
        return "discriminator" if step % (d + g) < d else "generator"

    def penalty(self, step: int) -> float:
        """Weight of the gradient penalty in this step: lazily, ``k γ`` at every k-th step of the discriminator."""
        if self.players(step) == "generator":
            return 0.0
        every = self.settings.penalty_every
        d, g = self.settings.d_steps, self.settings.g_steps
        played = step if d == g == 1 else step // (d + g) * d + min(step % (d + g), d)
        return 0.0 if played % every else every * self.settings.gradient_penalty

    def input_noise(self, first: float, step: int) -> float:
        """Standard deviation of the noise on the discriminator's ``x`` in this step, from ``first`` on, linear."""
        last = self.settings.final_input_noise
        if last is None or self.total <= 0:
            return first
        return first + (last - first) * min(1.0, step / self.total)

    def rate(self, step: int) -> float:
        """Share of the learning rates in this step, linear after ``decay_from``; in (0, 1]."""
        start = self.settings.decay_from * self.total
        if step <= start:
            return 1.0
        return 1 - (1 - self.settings.final_learning_rate) * min(1.0, (step - start) / (self.total - start))
