"""Alarms about a training that goes wrong although every number is finite, with advice."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from halikit.analysis.recovery import LEAST
from halikit.runs.record import Record

__all__ = ["Alarms"]

# A discriminator has won where ρ on average is so far apart on the two joints, for so many steps.
_APART = 0.98
_PATIENCE = 500
# Samples have collapsed where their spread is less than this share of the data's, so many evaluations in a row. Those
# of untrained networks are that narrow as well: they count once they have been wider, or after so many steps.
_SPREAD = 0.1
_EVALUATIONS = 2
_BEGINNING = 2000


class Alarms:
    """Watches the records of a training, and gives each warning once until its cause has passed.

    Args:
        notify: Called with what is wrong and what to try.
    """

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._won_since: int | None = None
        self._has_said_won = False
        self._narrow = 0
        self._has_been_wide = False

    def look_at(self, record: Record) -> None:
        """Look for a discriminator that has won."""
        if record.rho_q is None or record.rho_p is None or not record.rho_q - record.rho_p > _APART:
            self._won_since, self._has_said_won = None, False
            return
        self._won_since = record.step if self._won_since is None else self._won_since
        if record.step - self._won_since >= _PATIENCE and not self._has_said_won:
            self._has_said_won = True
            self._notify(
                f"the discriminator has known the two joints apart for {record.step - self._won_since:,} steps "
                f"(ρ_q {record.rho_q:.3f}, ρ_p {record.rho_p:.3f} at step {record.step:,}), and the generators learn "
                "little from it; try more discriminator.input_noise, a lower optimiser.discriminator_learning_rate, "
                "or game.gradient_penalty"
            )

    def look_at_samples(self, samples: Tensor, x: Tensor, step: int) -> None:
        """Look for samples that are all alike.

        Args:
            samples: From the decoder, ``(n, *shape of x)``.
            x: Data, ``(m, *shape of x)``.
            step: Steps played.
        """
        share = float(samples.std(0, correction=0).mean() / x.std(0, correction=0).mean().clamp_min(1e-12))
        self._has_been_wide |= share >= _SPREAD
        counts = share < _SPREAD and (self._has_been_wide or step >= _BEGINNING)
        self._narrow = self._narrow + 1 if counts else 0
        if self._narrow == _EVALUATIONS:
            self._notify(
                f"samples have collapsed: at step {step:,} their spread is {share:.1%} of the data's; try a lower "
                "optimiser.learning_rate, more discriminator.input_noise, or an earlier checkpoint (--resume-from)"
            )

    def look_at_recovery(self, recovered: Mapping[str, float]) -> None:
        """Look for levels that have not coupled by the end of training.

        Args:
            recovered: By the name of the latent, how much of it the encoder recovers in one step.
        """
        lost = [f"{name} ({value:.2f})" for name, value in recovered.items() if not value >= LEAST]
        if lost:
            self._notify(
                f"the encoder does not recover {', '.join(lost)} from the decoder's own samples, of 1 at most: "
                "halikit evaluate health RUN says whether the decoder ignores a level or the encoder does not "
                "find it; try more steps, a lower optimiser.learning_rate, or widths that fall more gradually"
            )
