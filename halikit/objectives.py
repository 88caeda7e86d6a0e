"""Pairs of losses on logits ``s`` (``ρ = sigmoid(s)``): pure functions, without networks or optimisers.

``s_q`` are the logits of samples of the encoder's joint, ``s_p`` those of the decoder's joint, each ``(n,)``. The
encoder's joint has the label 1 (real), the decoder's joint the label 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["OBJECTIVES", "Losses", "Objective", "jensen_shannon", "least_squares", "relativistic"]


class Losses(NamedTuple):
    """Losses to minimise, each ``()``: ``discriminator`` over θ_d, ``generator`` over θ_g."""

    discriminator: Tensor
    generator: Tensor


Objective = Callable[[Tensor, Tensor], Losses]

# Logits are clamped to ±40. This changes derivatives by less than 1e-17 and keeps ratios of derivatives finite.
_LOGIT_BOUND = 40.0


def jensen_shannon(s_q: Tensor, s_p: Tensor) -> Losses:
    """The losses of Algorithm 1, in the form that is non-saturating for the generators.

    ``L_d = −E log ρ_q − E log(1 − ρ_p)``, ``L_g = −E log(1 − ρ_q) − E log ρ_p``, in nats. ``log 2 − L_d/2`` is a
    lower bound on D_JS between the joints. Logits are clamped to ±40.
    """
    s_q, s_p = _bounded(s_q), _bounded(s_p)
    return Losses(softplus(-s_q).mean() + softplus(s_p).mean(), softplus(s_q).mean() + softplus(-s_p).mean())


def least_squares(s_q: Tensor, s_p: Tensor) -> Losses:
    """Half the mean squared error of the logits against the labels 1 and 0 (Mao et al. 2017).

    The generators' loss has the two labels exchanged.
    """
    return Losses(
        0.5 * ((s_q - 1).square().mean() + s_p.square().mean()),
        0.5 * (s_q.square().mean() + (s_p - 1).square().mean()),
    )


def relativistic(s_q: Tensor, s_p: Tensor) -> Losses:
    """The paired relativistic loss, on the difference ``s_q − s_p`` (Jolicoeur-Martineau 2019).

    Each encoder sample is compared with one decoder sample, so both batches have the same size. The differences are
    clamped to ±40. The losses depend on the differences alone, so all logits may drift by the same amount.
    """
    margin = _bounded(s_q - s_p)
    return Losses(softplus(-margin).mean(), softplus(margin).mean())


def _bounded(s: Tensor) -> Tensor:
    """The logits clamped to ±40, with the gradient of the identity. This avoids 0·∞ at large logits."""
    return s.clamp(-_LOGIT_BOUND, _LOGIT_BOUND).detach() + (s - s.detach())


OBJECTIVES: dict[str, Objective] = {
    "jensen_shannon": jensen_shannon,
    "least_squares": least_squares,
    "relativistic": relativistic,
}
