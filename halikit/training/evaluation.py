"""Evaluation while training: errors, recovery and pictures of the averaged weights."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from halikit.analysis.reconstruction import distances
from halikit.analysis.recovery import recovery
from halikit.data import DataSet
from halikit.discriminator import Discriminator
from halikit.hierarchy import Hierarchy
from halikit.runs.writer import RunWriter
from halikit.training.alarms import Alarms
from halikit.training.method import Method
from halikit.utils.random import seeded

__all__ = ["Evaluation"]

# Held-out samples that the errors are measured on, and how many of them the pictures show.
_HELD_OUT = 512
_SHOWN = 16


@dataclass(frozen=True)
class Evaluation:
    """Evaluates the averaged hierarchy on held-out data and on the decoder's samples.

    Attributes:
        method: The method of training; it may have measures of its own.
        averaged: The hierarchy with averaged weights, in evaluation mode.
        discriminator: θ_d, if there is a game.
        data: The data set.
        seed: Seed of the samples.
        alarms: Looks at the samples and at the recovery of each level.
        writer: Where pictures go, if anywhere.
    """

    method: Method
    averaged: Hierarchy
    discriminator: Discriminator | None
    data: DataSet
    seed: int
    alarms: Alarms
    writer: RunWriter | None = None

    @torch.no_grad()
    def __call__(self, step: int, *, is_last: bool) -> tuple[dict[str, float], dict[str, Any], float]:
        """Evaluate after ``step`` steps.

        Returns:
            The measures of the method by name, the fields of a record with a number for each level, and the score that
            the best checkpoint is chosen by; the lowest is the best.
        """
        device = self.averaged.prior.device
        with seeded(self.seed, device):
            measured = self.method.measure(self.averaged, self.data.held_out[:_HELD_OUT])
        per_level = self._per_level(step, is_last=is_last) if self.method.trains_decoder else {}
        return measured, per_level, fmean(per_level["errors"] if per_level else measured.values())

    def _per_level(self, step: int, *, is_last: bool) -> dict[str, tuple[float, ...]]:
        averaged, part = self.averaged, self.data.held_out
        device = averaged.prior.device
        x = part.batch(torch.arange(min(_HELD_OUT, len(part)), device=device))
        found = distances(averaged, self.discriminator, x)
        with seeded(self.seed, device):
            samples = averaged.sample(_SHOWN**2 // 2)
            recovered = recovery(averaged, _HELD_OUT)
        self.alarms.look_at_samples(samples, x, step)
        names = [space.name for space in averaged.spaces[1:]]
        if is_last:
            self.alarms.look_at_recovery(dict(zip(names, recovered.in_one_step, strict=True)))
        if self.writer:
            self.writer.pictures(samples, self._reconstructions(x[:_SHOWN], names), step)
        return {
            "errors": tuple(found.euclidean.square().mean(1).sqrt().tolist()),
            "embedded": () if found.embedded is None else tuple(found.embedded.mean(1).tolist()),
            "recovery": recovered.in_one_step,
            "recovery_from_x": recovered.from_x,
        }

    def _reconstructions(self, x: Tensor, names: list[str]) -> dict[str, Tensor]:
        return {"x": x} | {name: self.averaged.reconstruct(x, level) for level, name in enumerate(names, 1)}
