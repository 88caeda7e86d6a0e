"""Recovery of each latent by the encoder from the decoder's own samples (Eq. 4); this measure is ours.

It needs no data and no labels. It shows whether training has coupled encoder and decoder at each level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halikit.analysis.batched import sampled_parts
from halikit.hierarchy import Hierarchy
from halikit.kernels import CategoricalKernel, Kernel

__all__ = ["LEAST", "Recovery", "decoder_use", "recovery"]

# Encoder and decoder have not coupled at a level with a smaller R² in one step.
LEAST = 0.5

# Samples that are drawn and encoded at a time.
_CHUNK = 250
# Elements with a smaller variance are left out.
_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class Recovery:
    """``R²_l = 1 − MSE / variance`` for each element of ``z_l``, averaged over elements: at most 1, and 0 for a guess.

    For classes it is the share of samples whose class is recovered. It is NaN if no element varies. All are estimates.

    Attributes:
        in_one_step: Recovery from the decoder's ``z_{l−1}`` by the mean of ``q(z_l|z_{l−1})``, from level 1 up.
        from_x: Recovery from the decoder's ``x`` along the encoder's means, from level 1 up.
        num_samples: Number of samples of the decoder's joint.
    """

    in_one_step: tuple[float, ...]
    from_x: tuple[float, ...]
    num_samples: int


@torch.no_grad()
def recovery(hierarchy: Hierarchy, num_samples: int = 2000) -> Recovery:
    """Draw from the decoder's joint (Eq. 4), and encode the samples.

    Args:
        hierarchy: A hierarchy in evaluation mode; given ``num_samples`` contexts or one, if it takes a context.
        num_samples: Number of samples, at least 2, drawn by torch's global generator.
    """
    names = [space.name for space in hierarchy.spaces]
    one_step, from_x = ([_Score(link.up) for link in hierarchy] for _ in range(2))
    for size, part in sampled_parts(hierarchy, num_samples, _CHUNK):
        drawn = part.sample_states(size)
        along = part.encode(drawn[names[0]])
        for i, link in enumerate(part):
            one_step[i].add(drawn[names[i + 1]], link.up.mean(drawn[names[i]]))
            from_x[i].add(drawn[names[i + 1]], along[names[i + 1]])
    return Recovery(tuple(score.value() for score in one_step), tuple(score.value() for score in from_x), num_samples)


@torch.no_grad()
def decoder_use(hierarchy: Hierarchy, num_samples: int = 2000) -> tuple[float, ...]:
    """Use of each latent by the decoder, from level 1 up: 1 where ``p(z_{l−1}|z_l)`` ignores ``z_l``.

    It is the ratio of two root mean square errors of the kernel's mean as a guess of the decoder's ``z_{l−1}``: given
    the ``z_l`` of another sample, and given its own. It is an estimate. It has no upper limit: a deterministic kernel
    that does not ignore ``z_l`` makes no error given its own ``z_l``.

    Args:
        hierarchy: A hierarchy in evaluation mode; given ``num_samples`` contexts or one, if it takes a context.
        num_samples: Number of samples, at least 2, drawn by torch's global generator.
    """
    own, other = torch.zeros(2, len(hierarchy), dtype=torch.float64)
    for size, part in sampled_parts(hierarchy, num_samples, _CHUNK):
        drawn = part.sample_states(max(2, size))
        for i, link in enumerate(part):
            below, z = drawn[link.down.target.name], drawn[link.down.source.name]
            for sums, given in ((own, z), (other, z.roll(1, 0))):
                sums[i] += (below - link.down.mean(given)).double().square().sum().cpu()
    return tuple((other.clamp_min(1e-30) / own.clamp_min(1e-30)).sqrt().tolist())


class _Score:
    """The recovery by a kernel, from sums over samples, so that no samples are stored.

    Args:
        kernel: The kernel of the encoder.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._is_of_classes = isinstance(kernel.factors[-1], CategoricalKernel)
        self._number = 0
        # Sums over samples: of right classes; for other latents of the truth, its square, and the squared error.
        self._sums: list[Tensor] = []

    def add(self, truth: Tensor, guess: Tensor) -> None:
        """Add samples and guesses, ``(n, *shape)`` each."""
        if self._is_of_classes:
            right = truth.argmax(-1) == guess.argmax(-1) if truth.dim() > 1 else truth == guess
            found = [right.double()]
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
