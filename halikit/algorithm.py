"""Algorithm 1: the gradients of one step of the game between the two joints.

Algorithm 1 draws both joints, lets the discriminator judge the draws, and moves both players:

>>> step = play(hierarchy, discriminator, x)                 # doctest: +SKIP
>>> add_discriminator_gradients(step, discriminator)         # doctest: +SKIP
>>> add_generator_gradients(step, hierarchy)                 # doctest: +SKIP

The last two lines take two backward passes. :func:`add_both_gradients` takes one. While no layer couples samples, the
gradient that ``L_g`` sends back to sample ``i`` where it enters the discriminator is the gradient that ``L_d`` sends,
times ``r_i = (∂L_g/∂s_i) / (∂L_d/∂s_i)``. One backward pass through ``L_d``, rescaled by ``r_i`` where it leaves the
discriminator, thus gives the exact gradients of both losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from halikit.discriminator import CONTEXT, Discriminator, couples_samples
from halikit.hierarchy import Hierarchy
from halikit.objectives import Objective, jensen_shannon, relativistic
from halikit.utils.tensors import at_least_single

__all__ = [
    "Game",
    "Step",
    "add_both_gradients",
    "add_discriminator_gradients",
    "add_generator_gradients",
    "gradient_penalty",
    "play",
    "supports_single_pass",
]

# Objectives with ∂L_d/∂s ≠ 0 everywhere. A hinge is flat somewhere, least squares at s = 1.
SINGLE_PASS_OBJECTIVES: set[Objective] = {jensen_shannon, relativistic}


@dataclass(frozen=True)
class Game:
    """What one game of a discriminator gave.

    Attributes:
        states: What the discriminator read, ``(2n, *shape)`` by name: the encoder's samples, then the decoder's.
        logits: ``s``, ``(2n,)``, in single precision at least.
        discriminator_loss: ``L_d``, ``()``, detached.
        generator_loss: ``L_g``, ``()``, detached.
        discriminator_seed: ``∂L_d/∂s``, ``(2n,)``.
        generator_seed: ``∂L_g/∂s``, ``(2n,)``.
    """

    states: dict[str, Tensor]
    logits: Tensor
    discriminator_loss: Tensor
    generator_loss: Tensor
    discriminator_seed: Tensor
    generator_seed: Tensor


@dataclass(frozen=True)
class Step:
    """One step of Algorithm 1 up to the gradients.

    Attributes:
        encoder_states: A sample of the encoder's joint (Eq. 3), ``(n, *shape)`` by name; differentiable.
        decoder_states: A sample of the decoder's joint (Eq. 4), likewise.
        games: One for each game of the discriminator.
    """

    encoder_states: dict[str, Tensor]
    decoder_states: dict[str, Tensor]
    games: tuple[Game, ...]

    @property
    def discriminator_loss(self) -> Tensor:
        """``L_d``, ``()``, detached: nats under the Jensen–Shannon objective, the sum over the games."""
        return torch.stack([game.discriminator_loss for game in self.games]).sum()

    @property
    def generator_loss(self) -> Tensor:
        """``L_g``, likewise."""
        return torch.stack([game.generator_loss for game in self.games]).sum()

    @property
    def rho(self) -> Tensor:
        """``ρ_q`` and ``ρ_p``: mean ``ρ = sigmoid(s)`` over the encoder's and the decoder's samples, ``(2,)``."""
        return torch.stack([game.logits.detach().sigmoid().view(2, -1).mean(1) for game in self.games]).mean(0)


def play(
    hierarchy: Hierarchy,
    discriminator: Discriminator,
    x: Tensor,
    objective: Objective = jensen_shannon,
    *,
    encoder_noise: float = 0.0,
    context: Tensor | None = None,
) -> Step:
    """Draw both joints and judge them (Algorithm 1, down to the two losses).

    Args:
        hierarchy: θ_g. Under ``torch.no_grad`` its samples are constants, as in a step of the discriminator alone.
        discriminator: θ_d, over spaces of the hierarchy.
        x: Data, ``(n, *shape of x)``.
        objective: The pair of losses.
        encoder_noise: Standard deviation of the noise on the encoder's input, at least 0. The discriminator sees ``x``
            without it.
        context: What kernels and discriminator may read beside the states, ``(n, …)``. The discriminator finds it among
            the states under the name ``context``.
    """
    noisy = x.add(torch.randn_like(x), alpha=encoder_noise) if encoder_noise else x
    q = hierarchy.encode(noisy, sample=True, context=context) | {hierarchy.spaces[0].name: x}
    p = hierarchy.sample_states(len(x), context=context)
    if context is not None:
        q, p = q | {CONTEXT: context}, p | {CONTEXT: context}
    with torch.enable_grad():
        games = tuple(_judge(game, q, p, objective) for game in discriminator.games)
    return Step(q, p, games)


def add_discriminator_gradients(step: Step, discriminator: nn.Module) -> None:
    """Add the gradient of ``L_d`` over θ_d to ``.grad``."""
    parameters = _trained(discriminator)
    if parameters:
        logits, seeds = zip(*((game.logits, game.discriminator_seed) for game in step.games), strict=True)
        torch.autograd.backward(logits, seeds, inputs=parameters, retain_graph=True)


def add_generator_gradients(step: Step, hierarchy: Hierarchy) -> None:
    """Add the gradient of ``L_g`` over θ_g, encoder and decoder, to ``.grad``."""
    parameters = _trained(hierarchy)
    if parameters:
        logits, seeds = zip(*((game.logits, game.generator_seed) for game in step.games), strict=True)
        torch.autograd.backward(logits, seeds, inputs=parameters, retain_graph=True)


def add_both_gradients(step: Step, *, retain_graph: bool = False) -> None:
    """Add the gradients of ``L_d`` over θ_d and of ``L_g`` over θ_g to ``.grad``, in one backward pass.

    Exact where :func:`supports_single_pass` says so.

    Args:
        step: Its states are rescaled on the way back, so nothing else may be propagated through its games.
        retain_graph: Whether other losses are propagated through the sampled states afterwards.
    """
    for game in step.games:
        r = game.generator_seed / game.discriminator_seed
        for state in game.states.values():
            if state.requires_grad:
                state.register_hook(partial(_rescale, r=r))
    logits, seeds = zip(*((game.logits, game.discriminator_seed) for game in step.games), strict=True)
    torch.autograd.backward(logits, seeds, retain_graph=retain_graph)


def gradient_penalty(discriminator: Discriminator, *joints: Mapping[str, Tensor]) -> Tensor:
    """Zero-centred penalty ``E ‖∇ s‖²`` at samples, summed over joints and games, ``()`` (Mescheder et al. 2018).

    It is a loss of the discriminator alone: the samples are constants, so no gradient reaches the generators.

    Args:
        discriminator: θ_d.
        joints: Samples ``(n, *shape)`` by name, of one joint or of both.
    """
    total = torch.zeros((), device=next(iter(joints[0].values())).device)
    for joint in joints:
        leaves = {name: state.detach().requires_grad_(state.is_floating_point()) for name, state in joint.items()}
        for game in discriminator.games:
            inputs = [leaf for leaf in (leaves[space.name] for space in game.spaces) if leaf.requires_grad]
            gradients = torch.autograd.grad(game(leaves).sum(), inputs, create_graph=True)
            total = total + sum(gradient.reshape(len(gradient), -1).square().sum(1).mean() for gradient in gradients)
    return total


def supports_single_pass(
    discriminator: Discriminator, objective: Objective, states: Mapping[str, Tensor]
) -> tuple[bool, str]:
    """Whether one backward pass gives both gradients exactly, and why.

    Args:
        discriminator: θ_d.
        objective: The pair of losses.
        states: Any joint sample, ``(n, *shape)`` by name with ``n ≥ 2``, on which coupling is looked for.

    Returns:
        The answer and its reason in words.
    """
    if objective not in SINGLE_PASS_OBJECTIVES:
        name = getattr(objective, "__name__", str(objective))
        return False, f"two backward passes: {name} is not known to have ∂L_d/∂s ≠ 0 everywhere"
    if couples_samples(discriminator, states):
        return False, "two backward passes: the discriminator couples the samples of a batch"
    return True, "one backward pass for both players"


def _judge(game: Discriminator, q: Mapping[str, Tensor], p: Mapping[str, Tensor], objective: Objective) -> Game:
    """One game on its own concatenation of the samples, which no other game reads."""
    names = [space.name for space in game.spaces] + [CONTEXT] * (CONTEXT in q)
    states = {name: torch.cat([q[name], p[name]]) for name in names}
    logits = at_least_single(game(states))
    leaf = logits.detach().requires_grad_()
    losses = objective(*leaf.chunk(2))
    (discriminator_seed,) = torch.autograd.grad(losses.discriminator, leaf, retain_graph=True)
    (generator_seed,) = torch.autograd.grad(losses.generator, leaf)
    detached = (losses.discriminator.detach(), losses.generator.detach())
    return Game(states, logits, *detached, discriminator_seed, generator_seed)


def _rescale(gradient: Tensor, r: Tensor) -> Tensor:
    return gradient * r.view(-1, *[1] * (gradient.dim() - 1)).to(gradient.dtype)


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
