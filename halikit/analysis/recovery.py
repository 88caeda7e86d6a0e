"""How much of each latent the encoder recovers from the decoder's own samples; ours.

It needs no data and no labels, and is the first thing to look at: a level that does not couple is not recovered.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halikit.hierarchy import Hierarchy
from halikit.kernels import CategoricalKernel, Kernel

__all__ = ["LEAST", "Recovery", "decoder_use", "recovery"]

# A level of which less is recovered in one step has not coupled.
LEAST = 0.5

# Samples that are drawn and encoded at a time.
_CHUNK = 250
# An element that varies less holds nothing to recover.
_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class Recovery:
    """``R²_l = 1 − MSE / variance`` for each element of ``z_l``, averaged over elements; at most 1, and 0 for a guess.

    For classes it is the share that is recovered. NaN where no element varies. All are estimates.

    Attributes:
        in_one_step: From the decoder's ``z_{l−1}``, by the mean of ``q(z_l|z_{l−1})``; from level 1 up.
        from_x: From the decoder's ``x``, along the encoder's means.
        num_samples: Of the decoder's joint.
    """

    in_one_step: tuple[float, ...]
    from_x: tuple[float, ...]
    num_samples: int


@torch.no_grad()
def recovery(hierarchy: Hierarchy, num_samples: int = 2000) -> Recovery:
    """Draw from the decoder's joint (Eq. 4), and encode what was drawn.

    Args:
        hierarchy: In evaluation mode.
        num_samples: At least 2; drawn by torch's global generator.
    """
    names = [space.name for space in hierarchy.spaces]
    one_step, from_x = ([_Score(link.up) for link in hierarchy] for _ in range(2))
    for first in range(0, num_samples, _CHUNK):
        drawn = hierarchy.sample_states(min(_CHUNK, num_samples - first))
        along = hierarchy.encode(drawn[names[0]])
        for i, link in enumerate(hierarchy):
            one_step[i].add(drawn[names[i + 1]], link.up.mean(drawn[names[i]]))
            from_x[i].add(drawn[names[i + 1]], along[names[i + 1]])
    return Recovery(tuple(score.value() for score in one_step), tuple(score.value() for score in from_x), num_samples)


@torch.no_grad()
def decoder_use(hierarchy: Hierarchy, num_samples: int = 2000) -> tuple[float, ...]:
    """What each latent is worth to the decoder's kernel, from level 1 up: 1 where ``p(z_{l−1}|z_l)`` ignores ``z_l``.

    How much farther the decoder's ``z_{l−1}`` is from the kernel's mean given another sample's ``z_l`` than given its
    own: root mean squares, an estimate. Without bound for a deterministic kernel that does not ignore ``z_l``.

    Args:
        hierarchy: In evaluation mode.
        num_samples: At least 2; drawn by torch's global generator.
    """
    own, other = torch.zeros(2, len(hierarchy), dtype=torch.float64)
    for first in range(0, num_samples, _CHUNK):
        drawn = hierarchy.sample_states(max(2, min(_CHUNK, num_samples - first)))
        for i, link in enumerate(hierarchy):
            below, z = drawn[link.down.target.name], drawn[link.down.source.name]
            for sums, given in ((own, z), (other, z.roll(1, 0))):
                sums[i] += (below - link.down.mean(given)).double().square().sum().cpu()
    return tuple((other.clamp_min(1e-30) / own.clamp_min(1e-30)).sqrt().tolist())


class _Score:
    """Sums over samples, so that none need be kept.

    Args:
        kernel: Of the encoder, which guesses.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._is_of_classes = isinstance(kernel.factors[-1], CategoricalKernel)
        self._number = 0
        # Of hits for classes; for all else of the truth, its square, and the squared error, by element.
        self._sums: list[Tensor] = []

    def add(self, truth: Tensor, guess: Tensor) -> None:
        """More samples, ``(n, *shape)`` each."""
        if self._is_of_classes:
            hits = truth.argmax(-1) == guess.argmax(-1) if truth.dim() > 1 else truth == guess
            found = [hits.double()]
        else:
            truth, guess = (state.reshape(len(state), -1).double() for state in (truth, guess))
            found = [truth, truth.square(), (truth - guess).square()]
        sums = [values.sum(0) for values in found]
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if self._sums else sums
        self._number += len(truth)

    def value(self) -> float:
        """The share recovered, or R²."""
        means = [total / self._number for total in self._sums]
        if self._is_of_classes:
            return float(means[0])
        mean, square, error = means
        variance = square - mean.square()
        varies = variance >= _LEAST_VARIANCE
        return float((1 - error[varies] / variance[varies]).mean())
