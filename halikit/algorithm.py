"""Algorithm 1: the gradients of one step of the game between the two joints.

Algorithm 1 draws both joints, lets the discriminator judge the draws, and moves both players:

>>> step = play(hierarchy, discriminator, x)                 # doctest: +SKIP
>>> add_gradients(step, hierarchy, discriminator)            # doctest: +SKIP

The gradients of two losses take two backward passes, :func:`add_discriminator_gradients` and
:func:`add_generator_gradients`. :func:`add_both_gradients` takes one. While no layer couples samples, the gradient that
``L_g`` sends back to sample ``i`` where it enters the discriminator is the gradient that ``L_d`` sends, times
``r_i = (∂L_g/∂s_i) / (∂L_d/∂s_i)``. One backward pass through ``L_d``, rescaled by ``r_i`` where it leaves the
discriminator, thus gives the exact gradients of both losses. It needs ``∂L_d/∂s ≠ 0``. :func:`play` finds out whether
one pass is exact, and :func:`add_gradients` takes one pass or two accordingly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from halikit.discriminator import CONTEXT, Discriminator, is_known_to_couple
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.objectives import Objective, is_never_flat, jensen_shannon, losses_of, name_of
from halikit.spaces import Space
from halikit.utils.tensors import at_least_single

__all__ = [
    "Game",
    "Step",
    "add_both_gradients",
    "add_discriminator_gradients",
    "add_generator_gradients",
    "add_gradients",
    "gradient_penalty",
    "interpolated_penalty",
    "play",
    "refuse_discrete",
    "supports_single_pass",
]

# Supports of spaces without points between two states.
_DISCRETE = ("bits", "one_hot", "index")


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
        single_pass: Whether :func:`add_both_gradients` gives both gradients exactly.
    """

    encoder_states: dict[str, Tensor]
    decoder_states: dict[str, Tensor]
    games: tuple[Game, ...]
    single_pass: bool = False

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
    single_pass: bool | None = None,
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
        single_pass: Whether one backward pass is to serve both players; by default wherever that is exact. The first
            step of a discriminator is slower, because :func:`supports_single_pass` examines it.

    Raises:
        InputError: If a single pass is asked for and is not exact, or the objective does not return two losses.
    """
    noisy = x.add(torch.randn_like(x), alpha=encoder_noise) if encoder_noise else x
    q = hierarchy.encode(noisy, sample=True, context=context) | {hierarchy.spaces[0].name: x}
    p = hierarchy.sample_states(len(x), context=context)
    if context is not None:
        q, p = q | {CONTEXT: context}, p | {CONTEXT: context}
    with torch.enable_grad():
        games = tuple(_judge(game, q, p, objective) for game in discriminator.games)
    if single_pass is not False:
        judged = {name: state for game in games for name, state in game.states.items()}
        is_exact, reason = supports_single_pass(discriminator, objective, judged)
        if single_pass and not is_exact:
            raise InputError(f"a single backward pass would be wrong here, this game needs {reason}")
        single_pass = is_exact
    return Step(q, p, games, single_pass)


def add_gradients(step: Step, hierarchy: nn.Module, discriminator: nn.Module, *, retain_graph: bool = False) -> None:
    """Add the gradients of ``L_d`` over θ_d and of ``L_g`` over θ_g to ``.grad``, in the passes that are exact.

    Args:
        step: What :func:`play` gave, drawn with gradients.
        hierarchy: θ_g.
        discriminator: θ_d.
        retain_graph: Whether other losses are propagated through the sampled states afterwards.
    """
    if step.single_pass:
        add_both_gradients(step, retain_graph=retain_graph)
    else:
        add_discriminator_gradients(step, discriminator)
        add_generator_gradients(step, hierarchy)


def add_discriminator_gradients(step: Step, discriminator: nn.Module) -> None:
    """Add the gradient of ``L_d`` over θ_d to ``.grad``."""
    parameters = _trained(discriminator)
    if parameters:
        logits, seeds = zip(*((game.logits, game.discriminator_seed) for game in step.games), strict=True)
        torch.autograd.backward(logits, seeds, inputs=parameters, retain_graph=True)


def add_generator_gradients(step: Step, hierarchy: nn.Module) -> None:
    """Add the gradient of ``L_g`` over θ_g, encoder and decoder, to ``.grad``."""
    parameters = _trained(hierarchy)
    if parameters:
        logits, seeds = zip(*((game.logits, game.generator_seed) for game in step.games), strict=True)
        torch.autograd.backward(logits, seeds, inputs=parameters, retain_graph=True)


def add_both_gradients(step: Step, *, retain_graph: bool = False) -> None:
    """Add the gradients of ``L_d`` over θ_d and of ``L_g`` over θ_g to ``.grad``, in one backward pass.

    Args:
        step: Its states are rescaled on the way back, so nothing else may be propagated through its games.
        retain_graph: Whether other losses are propagated through the sampled states afterwards.

    Raises:
        InputError: If the step was played for two passes.
    """
    if not step.single_pass:
        raise InputError("one backward pass is not exact for this step; add_gradients takes the passes that are")
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
        for game in discriminator.games:
            squares = (_flat(gradient).square().sum(1).mean() for gradient in _gradients_of_logits(game, joint))
            total = total + sum(squares)
    return total


def interpolated_penalty(
    discriminator: Discriminator, encoder_states: Mapping[str, Tensor], decoder_states: Mapping[str, Tensor]
) -> Tensor:
    """One-centred penalty ``E (‖∇s‖ − 1)²``, summed over games, ``()`` (Gulrajani et al. 2017).

    It is taken at random points between paired samples: at ``u q_i + (1 − u) p_i`` with one ``u ~ U(0, 1)`` for all
    states of a pair. Like :func:`gradient_penalty` it is a loss of the discriminator alone.

    Args:
        discriminator: θ_d.
        encoder_states: Samples of the encoder's joint, ``(n, *shape)`` by name.
        decoder_states: As many of the decoder's.

    Raises:
        InputError: If a state that is read is discrete, because nothing lies between two of its values.
    """
    refuse_discrete(discriminator.spaces, encoder_states)
    first = encoder_states[discriminator.spaces[0].name]
    u = torch.rand(len(first), device=first.device)
    between = {space.name: _mixed(encoder_states, decoder_states, space.name, u) for space in discriminator.spaces}
    total = torch.zeros((), device=first.device)
    for game in discriminator.games:
        gradients = _gradients_of_logits(game, {**encoder_states, **between})
        norms = torch.cat([_flat(gradient) for gradient in gradients], 1).norm(dim=1)
        total = total + (norms - 1).square().mean()
    return total


def refuse_discrete(spaces: Iterable[Space], states: Mapping[str, Tensor], known: Collection[Space] = ()) -> None:
    """Refuse :func:`interpolated_penalty` where a state is discrete: integers, bits or classes.

    Args:
        spaces: Spaces of the states.
        states: A sample ``(n, *shape)`` by name.
        known: Spaces that are known to be discrete, beside those whose support or whose states say so.

    Raises:
        InputError: If one is discrete, because nothing lies between two of its values.
    """
    for space in spaces:
        if space in known or space.support in _DISCRETE or not states[space.name].is_floating_point():
            raise InputError(
                f"no penalty between samples of {space}, which is discrete: take it at the samples, "
                "game.penalised_joint = 'encoder', 'decoder' or 'both'"
            )


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
    if not is_never_flat(objective):
        return False, f"two backward passes: {name_of(objective)} is not known to have ∂L_d/∂s ≠ 0 everywhere"
    if is_known_to_couple(discriminator, states):
        return False, "two backward passes: the discriminator couples the samples of a batch"
    return True, "one backward pass for both players"


def _judge(game: Discriminator, q: Mapping[str, Tensor], p: Mapping[str, Tensor], objective: Objective) -> Game:
    """One game on its own concatenation of the samples, which no other game reads."""
    names = [space.name for space in game.spaces] + [CONTEXT] * (CONTEXT in q)
    states = {name: torch.cat([q[name], p[name]]) for name in names}
    logits = at_least_single(game(states))
    leaf = logits.detach().requires_grad_()
    losses = losses_of(objective, *leaf.chunk(2))
    (discriminator_seed,) = torch.autograd.grad(losses.discriminator, leaf, retain_graph=True)
    (generator_seed,) = torch.autograd.grad(losses.generator, leaf)
    detached = (losses.discriminator.detach(), losses.generator.detach())
    return Game(states, logits, *detached, discriminator_seed, generator_seed)


def _gradients_of_logits(game: Discriminator, joint: Mapping[str, Tensor]) -> list[Tensor]:
    """``∇s`` at samples, by each state that has a gradient; differentiable over θ_d."""
    leaves = {name: state.detach().requires_grad_(state.is_floating_point()) for name, state in joint.items()}
    inputs = [leaf for leaf in (leaves[space.name] for space in game.spaces) if leaf.requires_grad]
    return list(torch.autograd.grad(game(leaves).sum(), inputs, create_graph=True, materialize_grads=True))


def _mixed(q: Mapping[str, Tensor], p: Mapping[str, Tensor], name: str, u: Tensor) -> Tensor:
    return torch.lerp(p[name].detach(), q[name].detach(), u.view(-1, *[1] * (q[name].dim() - 1)).to(q[name].dtype))


def _flat(gradient: Tensor) -> Tensor:
    return gradient.reshape(len(gradient), -1)


def _rescale(gradient: Tensor, r: Tensor) -> Tensor:
    return gradient * r.view(-1, *[1] * (gradient.dim() - 1)).to(gradient.dtype)


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
