"""Algorithm 1: one step of the game between the two joints.

The usual step runs the chains and the discriminator twice. This one runs each once. While no layer couples samples, the
gradient that ``L_g`` sends back to sample ``i`` where it enters the discriminator is the one that ``L_d`` sends, times
``r_i = (∂L_g/∂s_i) / (∂L_d/∂s_i)``. One backward pass through ``L_d``, rescaled by ``r_i`` where it leaves the
discriminator, thus gives the exact gradients of both losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from halikit.discriminator import JointDiscriminator, PairwiseDiscriminator, couples_samples
from halikit.hierarchy import Hierarchy
from halikit.objectives import Losses, Objective, jensen_shannon, relativistic
from halikit.sleep import sleep_loss

__all__ = [
    "Joints",
    "Judges",
    "Penalised",
    "Players",
    "Step",
    "ascend",
    "descend",
    "gradient_penalty",
    "play",
    "supports_single_pass",
    "unsynchronised",
]

Players = Literal["both", "discriminator", "generator"]
Penalised = Literal["encoder", "decoder", "both"]

# Objectives with ∂L_d/∂s ≠ 0 everywhere. A hinge is flat somewhere, least squares at s = 1.
SINGLE_PASS_OBJECTIVES: set[Objective] = {jensen_shannon, relativistic}


class Step(NamedTuple):
    """What one step saw; scalars on the device, detached.

    Attributes:
        discriminator_loss: ``L_d``, nats under the Jensen–Shannon objective; the sum over the games.
        generator_loss: ``L_g``, likewise.
        rho_q: Mean ``ρ`` over encoder samples, in [0, 1].
        rho_p: Mean ``ρ`` over decoder samples, in [0, 1].
        sleep_loss: ``S``, nats per element, weighted; 0 without a sleep phase.
    """

    discriminator_loss: Tensor
    generator_loss: Tensor
    rho_q: Tensor
    rho_p: Tensor
    sleep_loss: Tensor


class Joints(nn.Module):
    """Both chains and the sleep phase as one module, so that one forward is all that processes have to agree on.

    Args:
        hierarchy: θ_g.
    """

    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__()
        self.hierarchy = hierarchy

    def forward(
        self, x: Tensor, noise: float = 0.0, sleep: Sequence[float] = ()
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """``n`` states of the encoder's joint given ``x``, ``(n, *shape of x)``; ``n`` of the decoder's; and ``S``."""
        q, p = ascend(self.hierarchy, x, noise), descend(self.hierarchy, len(x))
        asleep = sleep_loss(self.hierarchy, p, sleep, noise) if any(sleep) else torch.zeros((), device=x.device)
        return q, p, asleep


class Judges(nn.Module):
    """All games of a discriminator as one module.

    Args:
        discriminator: θ_d.
    """

    def __init__(self, discriminator: JointDiscriminator | PairwiseDiscriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, joints: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        """The logits ``(n,)`` of each game on its own states."""
        return [game(joint) for game, joint in zip(self.discriminator.games, joints, strict=True)]


def play(
    hierarchy: Hierarchy,
    discriminator: JointDiscriminator | PairwiseDiscriminator,
    x: Tensor,
    *,
    objective: Objective = jensen_shannon,
    players: Players = "both",
    single_pass: bool = True,
    encoder_noise: float = 0.0,
    sleep: Sequence[float] = (),
    penalty: float = 0.0,
    penalised: Penalised = "encoder",
    draw: nn.Module | None = None,
    judge: nn.Module | None = None,
) -> Step:
    """One step of Algorithm 1 up to the gradients, which are added to ``.grad``; the caller's optimisers do the rest.

    Args:
        hierarchy: θ_g.
        discriminator: θ_d, over the same spaces.
        x: Data, ``(n, *shape of x)``.
        objective: The pair of losses.
        players: Whose gradients to compute.
        single_pass: One backward pass for both players instead of two; exact where :func:`supports_single_pass`
            says so, and then preferable.
        encoder_noise: Standard deviation of the noise on the encoder's input, at least 0.
        sleep: Weights of the sleep phase, one a level; see :mod:`halikit.sleep`. It acts where the generators move.
        penalty: Weight γ of ``γ/2 · E ‖∇ s‖²``, which the discriminator's loss gains, at least 0.
        penalised: At whose joint.
        draw: :class:`Joints` of the hierarchy, wrapped where several processes play.
        judge: :class:`Judges` of the discriminator, likewise.
    """
    draw, judge = draw or Joints(hierarchy), judge or Judges(discriminator)
    generators_move = players != "discriminator"
    with torch.set_grad_enabled(generators_move):
        q, p, asleep = draw(x, encoder_noise, sleep if generators_move else ())
    joints = [
        {space.name: torch.cat([q[space.name], p[space.name]]) for space in game.spaces} for game in discriminator.games
    ]
    with unsynchronised(judge) if players == "generator" else nullcontext():
        logits = judge(joints)

    logits = [_at_least_single(logit) for logit in logits]
    verdicts = [_verdict(s, objective) for s in logits]
    if players == "both" and single_pass:
        for joint, verdict in zip(joints, verdicts, strict=True):
            r = verdict.towards_g / verdict.towards_d
            for state in joint.values():
                if state.requires_grad:
                    state.register_hook(partial(_rescaled, r=r))
    towards_d = list(zip(logits, (verdict.towards_d for verdict in verdicts), strict=True))
    if penalty and players != "generator":
        for states in {"encoder": [q], "decoder": [p], "both": [q, p]}[penalised]:
            cost = penalty / 2 * gradient_penalty(discriminator, states)
            towards_d.append((cost, torch.ones_like(cost)))

    sleep_seeds = [(asleep, torch.ones_like(asleep))] if asleep.requires_grad else []
    if players == "both" and single_pass:
        _propagate(towards_d + sleep_seeds)
    else:
        if players in ("both", "discriminator"):
            _accumulate(towards_d, discriminator)
        if generators_move:
            towards_g = list(zip(logits, (verdict.towards_g for verdict in verdicts), strict=True))
            _accumulate(towards_g + sleep_seeds, hierarchy)
    loss_d = torch.stack([verdict.losses.discriminator for verdict in verdicts]).sum()
    loss_g = torch.stack([verdict.losses.generator for verdict in verdicts]).sum()
    rhos = [s.detach().sigmoid().view(2, -1).mean(1) for s in logits]
    rho_q, rho_p = torch.stack(rhos).mean(0)
    return Step(loss_d, loss_g, rho_q, rho_p, asleep.detach())


def ascend(hierarchy: Hierarchy, x: Tensor, noise: float = 0.0) -> dict[str, Tensor]:
    """Draw ``z_l ~ q(z_l|z_{l−1})`` from the data up; the encoder sees ``x + noise · ε``, the result holds ``x``."""
    states = hierarchy.encode(x.add(torch.randn_like(x), alpha=noise) if noise else x, sample=True)
    return {**states, hierarchy.spaces[0].name: x}


def descend(hierarchy: Hierarchy, n: int) -> dict[str, Tensor]:
    """Draw ``z_L ~ p(z_L)`` and ``z_{l−1} ~ p(z_{l−1}|z_l)`` down to the data, ``n`` of each."""
    return hierarchy.sample_states(n)


def gradient_penalty(discriminator: JointDiscriminator | PairwiseDiscriminator, states: Mapping[str, Tensor]) -> Tensor:
    """Zero-centred penalty ``E ‖∇ s‖²`` at one joint's samples, ``()`` (Mescheder et al. 2018).

    A loss of the discriminator alone: the samples are taken as they are, so nothing flows back to the generators.

    Args:
        discriminator: Over these states.
        states: ``(n, *shape)`` by name.
    """
    leaves = {name: state.detach().requires_grad_(state.is_floating_point()) for name, state in states.items()}
    total = torch.zeros((), device=next(iter(leaves.values())).device)
    for game in discriminator.games:
        inputs = [leaf for leaf in (leaves[space.name] for space in game.spaces) if leaf.requires_grad]
        gradients = torch.autograd.grad(game(leaves).sum(), inputs, create_graph=True)
        total = total + sum(gradient.reshape(len(gradient), -1).square().sum(1).mean() for gradient in gradients)
    return total


def supports_single_pass(
    discriminator: JointDiscriminator | PairwiseDiscriminator, objective: Objective, states: Mapping[str, Tensor]
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


def unsynchronised(module: nn.Module) -> AbstractContextManager[None]:
    """A forward that other processes need not hear of: its gradients wait, or do not come to the parameters at all."""
    return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else nullcontext()


def _at_least_single(s: Tensor) -> Tensor:
    """Logits in float32 at least: a ratio of gradients has no place in half precision."""
    return s.float() if s.dtype.itemsize < 4 else s


class _Verdict(NamedTuple):
    """What the objective says of one game's logits ``(2n,)``: detached losses, and ``∂L_d/∂s`` and ``∂L_g/∂s``."""

    losses: Losses
    towards_d: Tensor
    towards_g: Tensor


def _verdict(s: Tensor, objective: Objective) -> _Verdict:
    leaf = s.detach().requires_grad_()
    losses = objective(*leaf.chunk(2))
    (towards_d,) = torch.autograd.grad(losses.discriminator, leaf, retain_graph=True)
    (towards_g,) = torch.autograd.grad(losses.generator, leaf)
    return _Verdict(Losses(*(loss.detach() for loss in losses)), towards_d, towards_g)


def _rescaled(gradient: Tensor, r: Tensor) -> Tensor:
    return gradient * r.view(-1, *[1] * (gradient.dim() - 1)).to(gradient.dtype)


def _accumulate(seeds: Sequence[tuple[Tensor, Tensor]], module: nn.Module) -> None:
    """Add the gradient over the parameters of ``module`` to their ``.grad``, and to no others.

    Args:
        seeds: Tensors, each with the gradient that it starts from.
        module: Whose parameters.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if parameters:
        _propagate(seeds, inputs=parameters, retain_graph=True)


def _propagate(seeds: Sequence[tuple[Tensor, Tensor]], **options: Any) -> None:
    tensors, gradients = zip(*seeds, strict=True)
    torch.autograd.backward(tensors, gradients, **options)
