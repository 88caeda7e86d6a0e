"""Pairs of losses on logits ``s`` (``ρ = sigmoid(s)``): pure functions, without networks or optimisers.

``s_q`` are the logits of the encoder's joint, ``s_p`` those of the decoder's, each ``(n,)``. The discriminator calls
the encoder's joint real.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["OBJECTIVES", "Losses", "Objective", "jensen_shannon", "least_squares", "relativistic"]


class Losses(NamedTuple):
    """Losses to be minimised, each ``()``: ``discriminator`` over θ_d, ``generator`` over θ_g."""

    discriminator: Tensor
    generator: Tensor


Objective = Callable[[Tensor, Tensor], Losses]

# Beyond these logits a derivative no longer changes: the error is below 1e-17, and ratios of derivatives stay finite.
_LOGIT_BOUND = 40.0


def jensen_shannon(s_q: Tensor, s_p: Tensor) -> Losses:
    """Algorithm 1's pair, non-saturating for the generators.

    ``L_d = −E log ρ_q − E log(1 − ρ_p)``, ``L_g = −E log(1 − ρ_q) − E log ρ_p``, in nats. ``log 2 − L_d/2`` is a
    lower bound on D_JS of the joints. Logits count as ±40 at most.
    """
    s_q, s_p = _bounded(s_q), _bounded(s_p)
    return Losses(softplus(-s_q).mean() + softplus(s_p).mean(), softplus(s_q).mean() + softplus(-s_p).mean())


def least_squares(s_q: Tensor, s_p: Tensor) -> Losses:
    """Squared distances to the labels 1 and 0 and, for the generators, the labels exchanged (Mao et al. 2017)."""
    return Losses(
        0.5 * ((s_q - 1).square().mean() + s_p.square().mean()),
        0.5 * (s_q.square().mean() + (s_p - 1).square().mean()),
    )


def relativistic(s_q: Tensor, s_p: Tensor) -> Losses:
    """The paired form: each encoder sample against one decoder sample (Jolicoeur-Martineau 2019); equal batches.

    Margins count as ±40 at most; the logits themselves may drift together without bound.
    """
    margin = _bounded(s_q - s_p)
    return Losses(softplus(-margin).mean(), softplus(margin).mean())


def _bounded(s: Tensor) -> Tensor:
    """Clamped to ±40 under a straight-through gradient: a winning discriminator gives no 0·∞."""
    return s.clamp(-_LOGIT_BOUND, _LOGIT_BOUND).detach() + (s - s.detach())


OBJECTIVES: dict[str, Objective] = {
    "jensen_shannon": jensen_shannon,
    "least_squares": least_squares,
    "relativistic": relativistic,
}
