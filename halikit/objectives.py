"""Pairs of losses on logits ``s`` (``ρ = sigmoid(s)``): pure functions, without networks or optimisers.

``s_q`` are the logits of samples of the encoder's joint, ``s_p`` those of the decoder's joint, each ``(n,)``. The
encoder's joint has the label 1 (real), the decoder's joint the label 0.

The f-divergences (:func:`kl`, :func:`reverse_kl`, :func:`chi2`, :func:`hellinger`) are played as zero-sum games on the
variational bound of Nowozin et al. (2016): ``D_f ≥ E_q T(s_q) − E_p f*(T(s_p))``, where ``D_f = E_p f(q/p)``, ``f*`` is
the convex conjugate of ``f``, and ``T(s) = f'(exp(s))``. With this ``T`` the bound is tight at ``s = log q/p``, as in
the Jensen–Shannon game. ``L_d`` is minus the bound, and ``L_g = −L_d``. Exponents are clamped to ±10, which bounds
the derivatives by about 40,000; a logit beyond counts as the limit, and the result is still a lower bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from torch import Tensor
from torch.nn.functional import softplus

from halikit.errors import InputError

__all__ = [
    "CUSTOM",
    "OBJECTIVES",
    "Losses",
    "Objective",
    "chi2",
    "hellinger",
    "hinge",
    "is_never_flat",
    "jensen_shannon",
    "kl",
    "least_squares",
    "losses_of",
    "name_of",
    "never_flat",
    "relativistic",
    "reverse_kl",
    "setting_of",
    "wasserstein",
]


class Losses(NamedTuple):
    """Losses to minimise, each ``()``: ``discriminator`` over θ_d, ``generator`` over θ_g."""

    discriminator: Tensor
    generator: Tensor


Objective = Callable[[Tensor, Tensor], Losses]
_Declared = TypeVar("_Declared", bound=Callable[..., Losses])

# How settings name an objective of the user's own: with its name behind this.
CUSTOM = "custom:"
# Logits are clamped to ±40. This changes derivatives by less than 1e-17 and keeps ratios of derivatives finite.
_LOGIT_BOUND = 40.0
# One sample with a larger exponent would fill Adam's averages, and training would stop for thousands of steps.
_EXPONENT_BOUND = 10.0


def never_flat(objective: _Declared) -> _Declared:
    """Declare that ``∂L_d/∂s`` is never zero, as a decorator: one backward pass can then serve both players.

    The single pass divides by ``∂L_d/∂s``. An objective without this declaration takes two passes, which are always
    exact.
    """
    objective.never_flat = True  # type: ignore[attr-defined]
    return objective


def is_never_flat(objective: Objective) -> bool:
    """Whether the objective is declared to be :func:`never_flat`."""
    return getattr(objective, "never_flat", False) is True


def name_of(objective: Objective) -> str:
    """The name of an objective: of its function, or of its class."""
    return str(getattr(objective, "__name__", type(objective).__name__)).strip("<>_")


def setting_of(objective: Objective) -> str:
    """The value of ``game.objective`` for an objective: its name in :data:`OBJECTIVES`, or ``custom:NAME``."""
    listed = [name for name, known in OBJECTIVES.items() if known is objective]
    return listed[0] if listed else CUSTOM + name_of(objective)


def losses_of(objective: Objective, s_q: Tensor, s_p: Tensor) -> Losses:
    """The losses of an objective at logits ``(n,)`` each.

    Raises:
        InputError: If the objective does not return one number for each player.
    """
    if not callable(objective):
        raise InputError(
            f"an objective is a function of the logits of both joints, got {objective!r}; the setting game.objective "
            "takes a name"
        )
    pair = objective(s_q, s_p)
    listed = pair if isinstance(pair, tuple) else (pair,)
    shapes = [tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__ for loss in listed]
    if shapes != [(), ()]:
        raise InputError(
            f"an objective returns two losses (), one for each player; {name_of(objective)} gives {shapes}"
        )
    return Losses(*pair)


@never_flat
def jensen_shannon(s_q: Tensor, s_p: Tensor) -> Losses:
    """The losses of Algorithm 1, in the form that is non-saturating for the generators.

    ``L_d = −E log ρ_q − E log(1 − ρ_p)``, ``L_g = −E log(1 − ρ_q) − E log ρ_p``, in nats. ``log 2 − L_d/2`` is a
    lower bound on D_JS between the joints. Logits are clamped to ±40.
    """
    s_q, s_p = _bounded(s_q), _bounded(s_p)
    return Losses(softplus(-s_q).mean() + softplus(s_p).mean(), softplus(s_q).mean() + softplus(-s_p).mean())


def least_squares(s_q: Tensor, s_p: Tensor) -> Losses:
    """Half the mean squared error of the logits against the labels 1 and 0 (Mao et al. 2017).

    The generators' loss has the two labels exchanged. ``L_d`` is flat where a logit equals its label, so the players
    take a backward pass each.
    """
    return Losses(
        0.5 * ((s_q - 1).square().mean() + s_p.square().mean()),
        0.5 * (s_q.square().mean() + (s_p - 1).square().mean()),
    )


@never_flat
def relativistic(s_q: Tensor, s_p: Tensor) -> Losses:
    """The paired relativistic loss, on the difference ``s_q − s_p`` (Jolicoeur-Martineau 2019).

    Each encoder sample is compared with one decoder sample, so both batches have the same size. The differences are
    clamped to ±40. The losses depend on the differences alone, so all logits may drift by the same amount.
    """
    margin = _bounded(s_q - s_p)
    return Losses(softplus(-margin).mean(), softplus(margin).mean())


def hinge(s_q: Tensor, s_p: Tensor) -> Losses:
    """``L_d = E max(0, 1 − s_q) + E max(0, 1 + s_p)``, ``L_g = E s_q − E s_p`` (Lim & Ye 2017; Miyato et al. 2018).

    ``L_d`` is flat for samples beyond the margin, so the players take a backward pass each.
    """
    return Losses((1 - s_q).relu().mean() + (1 + s_p).relu().mean(), s_q.mean() - s_p.mean())


@never_flat
def wasserstein(s_q: Tensor, s_p: Tensor) -> Losses:
    """``L_g = E s_q − E s_p = −L_d`` (Arjovsky et al. 2017), in the units of the states.

    ``L_g`` is a lower bound on the Wasserstein-1 distance of the joints while ``s`` has Lipschitz constant 1. The
    objective does not see to that: :func:`halikit.algorithm.interpolated_penalty` does, or a spectral norm. ``s`` has
    an arbitrary offset, so ``ρ`` says nothing here.
    """
    difference = s_q.mean() - s_p.mean()
    return Losses(-difference, difference)


@never_flat
def kl(s_q: Tensor, s_p: Tensor) -> Losses:
    """``L_g = 1 + E s_q − E exp(s_p) = −L_d`` (Nowozin et al. 2016), in nats.

    ``L_g`` is a lower bound on KL(q‖p), and equal to it at ``s = log q/p``. ``s`` is clamped to ±10.
    """
    s_q, s_p = _bounded(s_q, _EXPONENT_BOUND), _bounded(s_p, _EXPONENT_BOUND)
    return _zero_sum(1 + s_q.mean() - s_p.exp().mean())


@never_flat
def reverse_kl(s_q: Tensor, s_p: Tensor) -> Losses:
    """``L_g = 1 − E exp(−s_q) − E s_p = −L_d`` (Nowozin et al. 2016), in nats.

    ``L_g`` is a lower bound on KL(p‖q), and equal to it at ``s = log q/p``. ``s`` is clamped to ±10.
    """
    s_q, s_p = _bounded(s_q, _EXPONENT_BOUND), _bounded(s_p, _EXPONENT_BOUND)
    return _zero_sum(1 - (-s_q).exp().mean() - s_p.mean())


@never_flat
def chi2(s_q: Tensor, s_p: Tensor) -> Losses:
    """``L_g = 2 E exp(s_q) − E exp(2 s_p) − 1 = −L_d`` (Nowozin et al. 2016), without a unit.

    ``L_g`` is a lower bound on Pearson's ``χ²(q‖p) = E_p (q/p − 1)²``, and equal to it at ``s = log q/p``. ``s`` is
    clamped to ±5.
    """
    s_q, s_p = _bounded(s_q, _EXPONENT_BOUND / 2), _bounded(s_p, _EXPONENT_BOUND / 2)
    return _zero_sum(2 * s_q.exp().mean() - (2 * s_p).exp().mean() - 1)


@never_flat
def hellinger(s_q: Tensor, s_p: Tensor) -> Losses:
    """``L_g = 2 − E exp(−s_q/2) − E exp(s_p/2) = −L_d`` (Nowozin et al. 2016), at most 2.

    ``L_g`` is a lower bound on the squared Hellinger distance ``∫ (√q − √p)²``, and equal to it at ``s = log q/p``.
    ``s`` is clamped to ±20.
    """
    s_q, s_p = _bounded(s_q, 2 * _EXPONENT_BOUND), _bounded(s_p, 2 * _EXPONENT_BOUND)
    return _zero_sum(2 - (-s_q / 2).exp().mean() - (s_p / 2).exp().mean())


def _zero_sum(bound: Tensor) -> Losses:
    return Losses(-bound, bound)


def _bounded(s: Tensor, bound: float = _LOGIT_BOUND) -> Tensor:
    """The logits clamped to ±bound, with the gradient of the identity. This avoids 0·∞ at large logits."""
    return s.clamp(-bound, bound).detach() + (s - s.detach())


OBJECTIVES: dict[str, Objective] = {
    function.__name__: function
    for function in (
        *(jensen_shannon, least_squares, relativistic, hinge, wasserstein),
        *(kl, reverse_kl, chi2, hellinger),
    )
}
