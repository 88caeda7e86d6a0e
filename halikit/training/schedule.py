"""What changes with the step: who plays, how many levels, which rate. All count steps, never seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from halikit.algorithm import Players
from halikit.config import TrainingConfig
from halikit.errors import InputError

__all__ = ["Schedule", "stands_still"]

# By as much of itself the least error has to fall from one evaluation to the next, or it stands still.
_FALL = 0.02


@dataclass(frozen=True)
class Schedule:
    """The plan of a training of ``total`` steps, numbered from 0.

    Attributes:
        settings: What it follows.
        total: Steps in all.
        levels: Levels of the whole stack.
        grows: Whether the stack can be trained from the data up.
        additions: Steps at which a level is added, at the latest.
    """

    settings: TrainingConfig
    total: int
    levels: int
    grows: bool = True
    additions: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        planned = self.settings.model_copy(update={"steps": self.total})
        object.__setattr__(self, "additions", planned.growth(self.levels) if self.grows else ())

    def check(self) -> None:
        """Refuse a plan that ends before all levels have played.

        Raises:
            InputError: Naming the step at which the last level would come.
        """
        if self.additions and self.additions[-1] >= self.total:
            raise InputError(
                f"{self.total} steps end before the last level is added, at step {self.additions[-1]}; "
                "train longer, or set training.grow_every lower or to none"
            )

    def players(self, step: int) -> Players:
        """Who moves in this step: both at once, or in rounds of ``d_steps`` and then ``g_steps``."""
        d, g = self.settings.d_steps, self.settings.g_steps
        if d == g == 1:
            return "both"
        return "discriminator" if step % (d + g) < d else "generator"

    def penalty(self, step: int) -> float:
        """Weight of the gradient penalty in this step: lazily, ``k γ`` at every k-th step of the discriminator."""
        every = self.settings.penalty_every
        d, g = self.settings.d_steps, self.settings.g_steps
        played = step if d == g == 1 else step // (d + g) * d + min(step % (d + g), d)
        return 0.0 if played % every else every * self.settings.gradient_penalty

    def level(self, step: int) -> int:
        """How many levels play in this step, or more."""
        if not self.additions:
            return self.levels
        return 1 + sum(step >= addition for addition in self.additions)

    def input_noise(self, first: float, step: int) -> float:
        """Standard deviation of the noise on the discriminator's ``x`` in this step, from ``first`` on, linear."""
        last = self.settings.final_input_noise
        if last is None or self.total <= 0:
            return first
        return first + (last - first) * min(1.0, step / self.total)

    def rate(self, step: int) -> float:
        """Share of the learning rates in this step, linear after ``decay_from`` and the last addition; in (0, 1]."""
        start = max(self.settings.decay_from * self.total, *self.additions[-1:], 0)
        if step <= start or self.total <= start:
            return 1.0
        return 1 - (1 - self.settings.final_learning_rate) * min(1.0, (step - start) / (self.total - start))

    @property
    def settled_rate(self) -> float:
        """Share of their rate at which levels below the top one move, in (0, 1]."""
        return self.settings.settled_rate if self.additions else 1.0


def stands_still(errors: Sequence[float], uncoupled: float) -> bool:
    """Whether a level has learned what it will before the next comes.

    Args:
        errors: Of its reconstructions, at each evaluation since it was added.
        uncoupled: Error of the mean of all data in place of a reconstruction; a level that errs more knows nothing yet.
    """
    if len(errors) < 2 or min(errors) >= uncoupled:
        return False
    return errors[-1] > (1 - _FALL) * min(errors[:-1])
