"""Warnings, with advice, about trainings that fail although all numbers are finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from halikit.analysis.recovery import LEAST
from halikit.runs.record import Record

__all__ = ["Alarms"]

# The discriminator has won if ρ_q − ρ_p is above this difference for this number of steps.
_WON_DIFFERENCE = 0.98
_PATIENCE = 500
# Samples have collapsed if their standard deviation is below this share of the data's, in this number of consecutive
# evaluations. Untrained networks have such samples too. So evaluations count only after this number of steps, or after
# a larger standard deviation was seen.
_COLLAPSED_SHARE = 0.1
_EVALUATIONS = 2
_FIRST_STEPS = 2000


class Alarms:
    """Checks the records of a training. A warning is repeated only if its cause has disappeared in between.

    Args:
        notify: Called with each warning: what is wrong, and what to try.
    """

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._won_since: int | None = None
        self._has_warned_of_win = False
        self._collapsed_evaluations = 0
        self._has_varied = False

    def look_at(self, record: Record) -> None:
        """Warn if the discriminator has won."""
        if record.rho_q is None or record.rho_p is None or not record.rho_q - record.rho_p > _WON_DIFFERENCE:
            self._won_since, self._has_warned_of_win = None, False
            return
        self._won_since = record.step if self._won_since is None else self._won_since
        if record.step - self._won_since >= _PATIENCE and not self._has_warned_of_win:
            self._has_warned_of_win = True
            self._notify(
                f"the discriminator has known the two joints apart for {record.step - self._won_since:,} steps "
                f"(ρ_q {record.rho_q:.3f}, ρ_p {record.rho_p:.3f} at step {record.step:,}), and the generators learn "
                "little from it; try more discriminator.input_noise, a lower optimiser.discriminator_learning_rate, "
                "or game.gradient_penalty"
            )

    def look_at_samples(self, samples: Tensor, x: Tensor, step: int) -> None:
        """Warn if the samples have collapsed.

        Args:
            samples: Samples of the decoder, ``(n, *shape of x)``.
            x: Data, ``(m, *shape of x)``.
            step: Number of steps so far.
        """
        share = float(samples.std(0, correction=0).mean() / x.std(0, correction=0).mean().clamp_min(1e-12))
        self._has_varied |= share >= _COLLAPSED_SHARE
        counts = share < _COLLAPSED_SHARE and (self._has_varied or step >= _FIRST_STEPS)
        self._collapsed_evaluations = self._collapsed_evaluations + 1 if counts else 0
        if self._collapsed_evaluations == _EVALUATIONS:
            self._notify(
                f"samples have collapsed: at step {step:,} their spread is {share:.1%} of the data's; try a lower "
                "optimiser.learning_rate, more discriminator.input_noise, or an earlier checkpoint (--resume-from)"
            )

    def look_at_recovery(self, recovered: Mapping[str, float]) -> None:
        """Warn if levels have not coupled by the end of training.

        Args:
            recovered: Recovery of each latent by its name, at most 1; see :mod:`halikit.analysis.recovery`.
        """
        lost = [f"{name} ({value:.2f})" for name, value in recovered.items() if not value >= LEAST]
        if lost:
            self._notify(
                f"the encoder does not recover {', '.join(lost)} from the decoder's own samples, of 1 at most: "
                "halikit evaluate health RUN says whether the decoder ignores a level or the encoder does not "
                "find it; try more steps, a lower optimiser.learning_rate, or widths that fall more gradually"
            )
