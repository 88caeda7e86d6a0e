"""One line of ``metrics.csv``: what the last steps gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import isfinite
from statistics import fmean
from typing import Any

__all__ = ["PER_LEVEL", "Record", "cells_of", "columns", "metric_of", "prefers_higher", "values_of"]

# Losses of a step and measures on held-out data that records always have a column for.
_LOSSES = (
    *("d_loss", "g_loss", "rho_q", "rho_p", "sleep_loss", "negative_elbo", "held_out_negative_elbo"),
    *("supervised_loss", "held_out_label_error"),
)
# What has a number for each level, and the beginning of the names of its columns.
PER_LEVEL = {
    "errors": "error",
    "embedded": "embedded",
    "recovery": "recovery",
    "recovery_from_x": "recovery_from_x",
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the last steps gave. Losses and ρ are means over the steps; ``None`` where the method has no such number.

    Attributes:
        step: Steps so far.
        seconds: Training time so far, evaluations included.
        skipped: Steps so far that gave NaN or Inf and were skipped.
        d_loss: ``L_d``, nats under Jensen–Shannon.
        g_loss: ``L_g``, likewise.
        rho_q: Mean ``ρ`` over encoder samples, in [0, 1].
        rho_p: Mean ``ρ`` over decoder samples, in [0, 1].
        sleep_loss: ``S``, nats per element, weighted (:mod:`halikit.training.sleep`).
        negative_elbo: Nats per sample: an estimate of a bound, under batch statistics; see :mod:`halikit.elbo`.
        held_out_negative_elbo: The same on held-out data with averaged weights and running statistics: an estimate,
            with one draw per sample, of an upper bound on ``−log p(x)``.
        supervised_loss: Eq. 10 and the weighted consistency loss, nats.
        held_out_label_error: Share of held-out data assigned to a wrong class, averaged weights, along the means.
        steps_per_second: Over the last steps.
        images_per_second: Likewise.
        extra: Means of the user's own extra losses, by name.
        errors: Root mean square error of ``x̂_l`` on held-out data, averaged weights, along the means, from level 1 up:
            the square root of the mean of squares over all elements and images. Empty where held-out data were not
            evaluated or no decoder is trained; so are the following.
        embedded: Mean discriminator-embedded distance ``d_c(x, x̂_l)`` (Eq. 8) on the same data; empty without features.
        recovery: How much of the decoder's own ``z_l`` the encoder recovers in one step, averaged weights
            (:mod:`halikit.analysis.recovery`).
        recovery_from_x: The same from ``x``, along the means.
    """

    step: int
    seconds: float
    skipped: int
    d_loss: float | None = None
    g_loss: float | None = None
    rho_q: float | None = None
    rho_p: float | None = None
    sleep_loss: float | None = None
    negative_elbo: float | None = None
    held_out_negative_elbo: float | None = None
    supervised_loss: float | None = None
    held_out_label_error: float | None = None
    steps_per_second: float
    images_per_second: float
    extra: Mapping[str, float] = field(default_factory=dict)
    errors: tuple[float, ...] = ()
    embedded: tuple[float, ...] = ()
    recovery: tuple[float, ...] = ()
    recovery_from_x: tuple[float, ...] = ()

    @property
    def evaluated(self) -> bool:
        """Whether held-out data were evaluated."""
        return bool(self.errors) or any(name.startswith("held_out_") for name in self.losses)

    @property
    def losses(self) -> dict[str, float]:
        """The losses and the measures on held-out data by name, as far as there are any."""
        values = {name: getattr(self, name) for name in _LOSSES}
        return {name: value for name, value in values.items() if value is not None} | dict(self.extra)

    @classmethod
    def of(cls, losses: Mapping[str, float], **others: Any) -> Record:
        """A record with losses by name; those that are no field of their own become ``extra``."""
        extra = {name: value for name, value in losses.items() if name not in _LOSSES}
        known: dict[str, Any] = {name: value for name, value in losses.items() if name in _LOSSES}
        return cls(extra=extra, **known, **others)


def columns(latents: Sequence[str], extra: Sequence[str]) -> list[str]:
    """The columns of ``metrics.csv``.

    Args:
        latents: Names of the latents, from level 1 up.
        extra: Names of the user's own extra losses.
    """
    single = [each.name for each in fields(Record) if each.name not in PER_LEVEL and each.name != "extra"]
    extra = [name for name in extra if name not in _LOSSES]
    return [*single, *extra, *(f"{kind}_{name}" for kind in PER_LEVEL.values() for name in latents)]


def values_of(record: Record, latents: Sequence[str]) -> dict[str, float]:
    """What was measured, by column."""
    single = [each.name for each in fields(Record) if each.name not in PER_LEVEL and each.name != "extra"]
    values: dict[str, float | None] = {name: getattr(record, name) for name in single}
    values |= dict(record.extra)
    for name, kind in PER_LEVEL.items():
        measured = getattr(record, name)
        values |= {f"{kind}_{latent}": value for latent, value in zip(latents, measured, strict=False)}
    return {name: value for name, value in values.items() if value is not None}


def cells_of(record: Record, latents: Sequence[str]) -> dict[str, str]:
    """The cells of a record by column; those without a measurement are left out."""
    values = values_of(record, latents)
    return {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in values.items()}


def metric_of(record: Record, name: str, latents: Sequence[str]) -> float | None:
    """A number of a record by which trainings or checkpoints are compared.

    Args:
        record: The record.
        name: A column of ``metrics.csv``; the beginning of columns with a number for each level, such as ``error``,
            for their mean; ``auto`` for the mean error, or the share of wrong classes where no decoder is trained.
        latents: Names of the latents, from level 1 up.

    Returns:
        The number; ``None`` if it was not measured or is not finite.
    """
    values = values_of(record, latents)
    per_level = {kind: getattr(record, each) for each, kind in PER_LEVEL.items()}
    if name == "auto":
        name = "error" if record.errors else "held_out_label_error"
    value = fmean(per_level[name]) if per_level.get(name) else values.get(name)
    return value if value is not None and isfinite(value) else None


def prefers_higher(name: str) -> bool:
    """Whether a higher number is the better one: for recovery. All other metrics are losses and errors."""
    return name.startswith("recovery")
