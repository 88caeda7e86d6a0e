"""The sleep phase: each encoder kernel learns to predict ``z_l`` from ``z_{l−1}`` on samples of the decoder.

``S = Σ_l w_l E_p [−log q(z_l|z_{l−1})]`` over ``(z_{l−1}, z_l) ~ p``, where each term is divided by the number of
elements of ``z_l``. It is a loss of the encoder alone: the decoder's samples are constants, and no data are used
(Hinton et al. 1995, "The wake-sleep algorithm for unsupervised neural networks"; not in the paper). The terms are the
kernels' :meth:`~halikit.Kernel.sleep_loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from halikit.config import Config
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.kernels import Kernel
from halikit.training.extra_losses import ExtraLoss, StepContext
from halikit.utils.modes import evaluating, keeping_buffers, validating
from halikit.utils.random import seeded

__all__ = ["RULE", "resolve_sleep_weights", "sleep_loss", "sleep_phase", "sleep_weights"]

# The default weights of :func:`sleep_weights`, in words.
RULE = (
    "1 at every level, but 0 at level 1 if z1 is feature maps, and 0 where an encoder kernel knows neither a density "
    "nor a mean, or shares weights with the decoder"
)


def sleep_loss(
    hierarchy: Hierarchy, states: Mapping[str, Tensor], weights: Sequence[float], noise: float = 0.0
) -> Tensor:
    """``S`` on samples of the decoder's joint, ``()``. Only the encoder gets a gradient.

    In training mode batch normalisation uses the statistics of these samples. Running statistics and other buffers do
    not change.

    Args:
        hierarchy: The hierarchy, in training or evaluation mode; given the contexts of the samples if it takes one.
        states: Samples of the decoder's joint (Eq. 4), ``(n, *shape)`` by name.
        weights: ``w_1 … w_L``, each at least 0.
        noise: Standard deviation of the noise on the encoder's input, as in the game.
    """
    encoder = _WeightedEncoder(hierarchy, weights, noise)
    return keeping_buffers(encoder, {name: state.detach() for name, state in states.items()})


def sleep_phase(weights: Sequence[float], noise: float = 0.0, *, running_statistics: bool = False) -> ExtraLoss:
    """The sleep phase as an extra loss of the encoder.

    Args:
        weights: ``w_1 … w_L``, each at least 0.
        noise: Standard deviation of the noise on the encoder's input, as in the game.
        running_statistics: Whether the encoder normalises the decoder's samples by the running statistics of the game,
            as it does after training, instead of the samples' own. Dropout and noise on latents are off then.
    """

    def sleep_loss_of_step(step: StepContext) -> Tensor:
        hierarchy = step.hierarchy.conditioned(step.context)
        with evaluating(hierarchy) if running_statistics else nullcontext():
            return sleep_loss(hierarchy, step.decoder_states, weights, noise)

    return ExtraLoss(sleep_loss_of_step, "encoder", name="sleep_loss", samples="constant")


def resolve_sleep_weights(config: Config, hierarchy: Hierarchy, notify: Callable[[str], None]) -> Config:
    """The settings with one weight of the sleep phase for each level.

    Args:
        config: The settings.
        hierarchy: The hierarchy that they are for.
        notify: Called with each notice about a weight.

    Raises:
        InputError: As :func:`sleep_weights`.
    """
    wanted = config.game.sleep_weights
    if not config.plays or wanted == 0:
        return config
    weights, notices = sleep_weights(hierarchy, wanted)
    weights, outside = _within_supports(hierarchy, weights)
    for notice in notices + outside:
        notify(notice)
    return config.model_copy(update={"game": config.game.model_copy(update={"sleep_weights": weights})})


def sleep_weights(
    hierarchy: Hierarchy, wanted: Literal["auto"] | float | Sequence[float] = "auto"
) -> tuple[tuple[float, ...], list[str]]:
    """The weight of the sleep phase for each level, and messages about the weights.

    Args:
        hierarchy: The hierarchy.
        wanted: One weight for all levels, a sequence of weights from level 1 up, or ``"auto"`` for :data:`RULE`.

    Returns:
        ``w_1 … w_L``, and messages about levels whose weight is set to 0.

    Raises:
        InputError: If the number of weights is not the number of levels, or a weight that is not 0 is given for a
            kernel that shares weights with the decoder.
    """
    levels = len(hierarchy)
    if wanted == "auto":
        weights = [0.0 if level == 1 and link.up.target.is_maps else 1.0 for level, link in enumerate(hierarchy, 1)]
    else:
        weights = [float(w) for w in wanted] if isinstance(wanted, Sequence) else [float(wanted)] * levels
    if len(weights) != levels:
        raise InputError(f"game.sleep_weights has {len(weights)} weights, and the hierarchy has {levels} levels")
    decoder = {id(parameter) for link in hierarchy for parameter in link.down.parameters()}
    notices = []
    for i, link in enumerate(hierarchy):
        if not weights[i]:
            continue
        name = link.up.target.name
        if any(id(parameter) in decoder for parameter in link.up.parameters()):
            if wanted != "auto":
                raise InputError(
                    f"game.sleep_weights is {weights[i]:g} at {name}, but {link.up} shares weights with the decoder, "
                    "which the sleep phase must not train; it has to be 0 there"
                )
            notices.append(f"no sleep phase at {name}: {link.up} shares weights with the decoder")
        elif not link.up.has_sleep_loss:
            notices.append(f"no sleep phase at {name}: {link.up} has neither a density nor a mean to learn by")
        else:
            continue
        weights[i] = 0.0
    return tuple(weights), notices


def _within_supports(hierarchy: Hierarchy, weights: Sequence[float]) -> tuple[tuple[float, ...], list[str]]:
    """The weights, with 0 where the decoder's samples have no density under the encoder's kernel, and messages.

    A prior on all of R^d, say, draws states that a kernel of bits or of proportions never draws.
    """
    if hierarchy.takes_context and hierarchy.context is None:
        return tuple(weights), []
    with evaluating(hierarchy), seeded(0, hierarchy.prior.device), torch.no_grad():
        states = hierarchy.sample_states(16)
        kept, notices = list(weights), []
        for i, link in enumerate(hierarchy):
            if weights[i] and not _has_loss(link.up, states):
                kept[i] = 0.0
                notices.append(
                    f"no sleep phase at {link.up.target.name}: samples of the decoder lie where {link.up} has no "
                    "density; give the hierarchy a prior, or kernels, on the support of its draws"
                )
    return tuple(kept), notices


def _has_loss(kernel: Kernel, states: Mapping[str, Tensor]) -> bool:
    try:
        with validating():
            loss = kernel.sleep_loss(states[kernel.target.name], states[kernel.source.name])
    except ValueError as error:  # of torch.distributions, for a value outside of the support
        if "support" in str(error):
            return False
        raise
    return bool(loss.isfinite().all())


class _WeightedEncoder(nn.Module):
    """The encoder's kernels with their weights as one module, so that one call can replace all buffers."""

    def __init__(self, hierarchy: Hierarchy, weights: Sequence[float], noise: float) -> None:
        super().__init__()
        weighted = [(link.up, weight) for link, weight in zip(hierarchy, weights, strict=True) if weight]
        self.encoder = nn.ModuleList(kernel for kernel, _ in weighted)
        self.weighted = weighted
        self.data, self.noise = hierarchy.spaces[0].name, noise

    def forward(self, states: dict[str, Tensor]) -> Tensor:
        """The weighted loss of all levels at samples of the decoder by name, a scalar."""
        if self.noise:
            x = states[self.data]
            states = {**states, self.data: x.add(torch.randn_like(x), alpha=self.noise)}
        total = torch.zeros((), device=states[self.data].device)
        for kernel, weight in self.weighted:
            total = total + weight * kernel.sleep_loss(states[kernel.target.name], states[kernel.source.name]).mean()
        return total
