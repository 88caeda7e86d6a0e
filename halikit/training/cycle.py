"""Reconstruction beside the game: cycle consistency, and the evidence bound as a loss of both generators.

Both are :class:`~halikit.ExtraLoss` instances, off by default. In training mode batch normalisation and gauges use the
statistics of the batch. Running statistics and other buffers do not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyro
import torch
from torch import Tensor, nn

from halikit.discriminator import CONTEXT
from halikit.elbo import check_trains_by_elbo, negative_elbo
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.kernels import Kernel
from halikit.training.extra_losses import ExtraLoss, StepContext
from halikit.utils.modes import keeping_buffers
from halikit.utils.tensors import at_least_single, per_element

__all__ = ["cycle_consistency", "cycle_loss", "evidence_bound"]


def cycle_loss(hierarchy: Hierarchy, states: Mapping[str, Tensor], weights: Sequence[float]) -> Tensor:
    """``Σ_l w_l E[−log p(x|z_1)]``, the error of ``x`` after the way up to ``z_l`` and back, ``()`` (Li et al. 2017).

    The way up is the given sample; the way down to ``z_1`` is drawn from the decoder. The error of ``x`` given ``z_1``
    is the :meth:`~halikit.Kernel.sleep_loss` of the kernel, per element of ``x``: the negative log-density in nats, or
    the squared error of the mean where there is no density. Where the kernel knows no mean either, it is the squared
    error of a draw. Li et al. have one level; the sum over levels is ours.

    Args:
        hierarchy: The hierarchy, in training or evaluation mode.
        states: A sample of the encoder's joint (Eq. 3), ``(n, *shape)`` by name, with the context if there is one.
            Gradients pass through it to the encoder.
        weights: ``w_1 … w_L``, each at least 0.
    """
    return keeping_buffers(_Cycle(hierarchy, weights), dict(states))


def cycle_consistency(hierarchy: Hierarchy, weights: float | Sequence[float]) -> ExtraLoss:
    """:func:`cycle_loss` as an extra loss of both generators, on the step's sample of the encoder's joint.

    Args:
        hierarchy: The hierarchy that it will train.
        weights: One weight for all levels, or one for each level from 1 up; each at least 0.

    Raises:
        InputError: If the number of weights is not the number of levels.
    """
    levels = len(hierarchy)
    listed = tuple(weights) if isinstance(weights, Sequence) else (weights,) * levels
    if len(listed) != levels:
        raise InputError(f"game.cycle_weight has {len(listed)} weights, and the hierarchy has {levels} levels")

    def cycle_loss_of_step(step: StepContext) -> Tensor:
        return cycle_loss(step.hierarchy, step.encoder_states, listed)

    return ExtraLoss(cycle_loss_of_step, "generators", name="cycle_loss")


def evidence_bound(hierarchy: Hierarchy, weight: float = 1.0) -> ExtraLoss:
    """:func:`halikit.elbo.negative_elbo` as an extra loss of both generators, in nats, with a sample of its own.

    Args:
        hierarchy: The hierarchy that it will train.
        weight: Factor on the gradient, at least 0.

    Raises:
        InputError: If a kernel has no density in training mode, as none with a gauge has.
    """
    check_trains_by_elbo(hierarchy)

    def negative_elbo_of_step(step: StepContext) -> Tensor:
        states = step.encoder_states
        bound = _Bound(step.hierarchy.conditioned(states.get(CONTEXT)))
        return keeping_buffers(bound, states[step.hierarchy.spaces[0].name])

    return ExtraLoss(negative_elbo_of_step, "generators", name="negative_elbo", weight=weight)


class _Cycle(nn.Module):
    """The hierarchy as a module whose call is the loss, so that the call can leave all buffers as they are."""

    def __init__(self, hierarchy: Hierarchy, weights: Sequence[float]) -> None:
        super().__init__()
        self.hierarchy, self.weights = hierarchy, weights

    def forward(self, states: dict[str, Tensor]) -> Tensor:
        """The weighted loss of all levels at samples of the encoder by name, a scalar."""
        hierarchy = self.hierarchy.conditioned(states.get(CONTEXT))
        down = [link.down for link in hierarchy]
        x = states[hierarchy.spaces[0].name]
        total = torch.zeros((), device=x.device)
        for level, weight in enumerate(self.weights, 1):
            if weight:
                z = states[hierarchy.spaces[level].name]
                for kernel in reversed(down[1:level]):
                    z = kernel.sample(z)
                total = total + weight * _error(down[0], x, z).mean()
        return total


class _Bound(nn.Module):
    """Likewise for the evidence bound."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__()
        self.hierarchy = hierarchy

    def forward(self, x: Tensor) -> Tensor:
        """The bound at data ``(n, *shape of x)``, a scalar."""
        # Pyro's validation raises errors for NaN, where the guard of the training skips the step.
        with pyro.validation_enabled(False):
            return negative_elbo(self.hierarchy, x)


def _error(kernel: Kernel, x: Tensor, z: Tensor) -> Tensor:
    """The error of ``x`` given ``z``, ``(n,)``, per element."""
    if kernel.has_sleep_loss:
        return kernel.sleep_loss(x, z)
    return per_element((at_least_single(x) - at_least_single(kernel.sample(z))).square())
