"""Evaluation while training: errors, recovery and pictures of the averaged weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halikit import plotting
from halikit.analysis.reconstruction import distances
from halikit.analysis.recovery import recovery
from halikit.data import DataSet, Split
from halikit.discriminator import Discriminator
from halikit.hierarchy import Hierarchy
from halikit.runs.loggers import Pictures
from halikit.settings import ContextKind
from halikit.training.alarms import Alarms
from halikit.training.method import Method
from halikit.utils.random import seeded
from halikit.utils.tensors import evenly_spaced

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
        context: What the model reads of each datum beside it, if anything.
        seed: Seed of the samples.
        alarms: Looks at the samples and at the recovery of each level.
        show: Takes the pictures, if anybody does.
    """

    method: Method
    averaged: Hierarchy
    discriminator: Discriminator | None
    data: DataSet
    context: ContextKind | None
    seed: int
    alarms: Alarms
    show: Callable[[Pictures], None] | None = None

    @torch.no_grad()
    def __call__(self, step: int, *, is_last: bool) -> tuple[dict[str, float], dict[str, Any]]:
        """Evaluate after ``step`` steps.

        Returns:
            The measures of the method by name, and the fields of a record with a number for each level.
        """
        part = self.data.held_out.evenly(_HELD_OUT)
        averaged = self._given(part)
        with seeded(self.seed, averaged.prior.device):
            measured = self.method.measure(averaged, part)
        per_level = self._per_level(step, is_last=is_last) if self.method.trains_decoder else {}
        return measured, per_level

    def _per_level(self, step: int, *, is_last: bool) -> dict[str, tuple[float, ...]]:
        part = self.data.held_out.evenly(_HELD_OUT)
        averaged = self._given(part)
        device = averaged.prior.device
        x = part.batch()
        found = distances(averaged, self.discriminator, x)
        with seeded(self.seed, device):
            samples = self._samples()
            recovered = recovery(self._drawn(_HELD_OUT), _HELD_OUT)
        self.alarms.look_at_samples(samples, x, step)
        names = [space.name for space in averaged.spaces[1:]]
        if is_last:
            self.alarms.look_at_recovery(dict(zip(names, recovered.in_one_step, strict=True)))
        if self.show and plotting.is_drawable(x.shape[1:]):
            rows = evenly_spaced(_SHOWN, len(x)).to(device)
            shown = averaged.rows(rows)
            rebuilt = {name: shown.reconstruct(x[rows], level) for level, name in enumerate(names, 1)}
            self.show(
                {
                    "samples": plotting.grid(samples, _SHOWN),
                    "reconstructions": plotting.labelled_rows({"x": x[rows]} | rebuilt),
                }
            )
        return {
            "errors": tuple(found.euclidean.square().mean(1).sqrt().tolist()),
            "embedded": () if found.embedded is None else tuple(found.embedded.mean(1).tolist()),
            "recovery": recovered.in_one_step,
            "recovery_from_x": recovered.from_x,
        }

    def _given(self, part: Split) -> Hierarchy:
        """The hierarchy given the contexts of data, if it takes any."""
        return self.averaged if self.context is None else self.averaged.conditioned(part.context(self.context))

    def _drawn(self, n: int) -> Hierarchy:
        """The hierarchy given ``n`` contexts drawn from the training data."""
        if self.context is None:
            return self.averaged
        found = self.data.train.context(self.context)
        return self.averaged.conditioned(found[torch.randint(len(found), (n,), device=found.device)])

    def _samples(self) -> Tensor:
        """Samples for a picture: each row is of one class, or has the attributes of one datum."""
        if self.context is None:
            return self.averaged.sample(_SHOWN**2 // 2)
        if self.context == "labels":
            of_rows = torch.arange(min(len(self.data.classes), _SHOWN), device=self.averaged.prior.device)
        else:
            of_rows = self.data.held_out.context(self.context)[: _SHOWN // 2]
        context = of_rows.repeat_interleave(_SHOWN, 0)
        return self.averaged.sample(len(context), context=context)
