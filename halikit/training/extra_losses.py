"""Losses beside those of Algorithm 1: a loss, the player that it trains, and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from halikit.discriminator import Discriminator
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy

__all__ = [
    "ExtraLoss",
    "NotCapturableError",
    "Player",
    "StepContext",
    "add_gradients",
    "check_names",
    "modules_of",
    "parameters_of",
]

Player = Literal["encoder", "decoder", "generators", "discriminator"]


class NotCapturableError(RuntimeError):
    """A loss needs something that changes from step to step and cannot be part of a compiled graph."""


@dataclass(frozen=True)
class StepContext:
    """What an extra loss can use.

    Attributes:
        encoder_states: The step's sample of the encoder's joint (Eq. 3), ``(n, *shape)`` by name.
        decoder_states: The step's sample of the decoder's joint (Eq. 4), likewise.
        hierarchy: θ_g, in training mode.
        discriminator: θ_d, in training mode.
        labels: The labels of the batch, ``(n,)`` int64; ``None`` where the data have none.
        context: The context of the batch, ``(n, …)``; ``None`` where the model takes none.
    """

    encoder_states: dict[str, Tensor]
    decoder_states: dict[str, Tensor]
    hierarchy: Hierarchy
    discriminator: Discriminator
    labels: Tensor | None
    step_number: int | None
    context: Tensor | None = None

    @property
    def number(self) -> int:
        """The number of the step, counted from 0.

        Raises:
            NotCapturableError: While a step is compiled: training then goes on without compilation.
        """
        if self.step_number is None:
            raise NotCapturableError("the number of the step is not constant")
        return self.step_number

    @property
    def detached(self) -> StepContext:
        """The same with constant states."""
        encoder, decoder = (
            {name: state.detach() for name, state in states.items()}
            for states in (self.encoder_states, self.decoder_states)
        )
        return replace(self, encoder_states=encoder, decoder_states=decoder)


@dataclass(frozen=True)
class ExtraLoss:
    """A loss beside those of Algorithm 1, for one player.

    Args:
        function: Takes a :class:`StepContext` and returns the loss, ``()``. If it is a module, its parameters are
            trained with the player, their gradients are averaged over processes, and they are saved.
        player: ``"encoder"``, ``"decoder"``, ``"generators"`` (both) or ``"discriminator"``. Only the parameters of
            this player get a gradient. The loss is computed in the steps in which the player is trained.
        name: Column of ``metrics.csv``; by default the name of the function.
        weight: Factor on the gradient. The column has the loss without it.
        samples: How the loss uses the sampled states. ``"constant"`` means that no gradient passes through them, which
            saves memory. ``"unused"`` means that it does not read them, so it runs outside of a compiled step.

    Raises:
        InputError: If the player is unknown.
    """

    function: Callable[[StepContext], Tensor]
    player: Player
    name: str = ""
    weight: float = 1.0
    samples: Literal["differentiated", "constant", "unused"] = "differentiated"

    def __post_init__(self) -> None:
        if self.player not in get_args(Player):
            raise InputError(
                f"the player of an extra loss is one of {', '.join(get_args(Player))}, got {self.player!r}"
            )
        if not self.name:
            name = getattr(self.function, "__name__", type(self.function).__name__)
            object.__setattr__(self, "name", name.strip("<>_").lower())

    @property
    def module(self) -> nn.Module | None:
        """The function, if it is a module."""
        return self.function if isinstance(self.function, nn.Module) else None


def check_names(losses: Iterable[ExtraLoss], taken: Iterable[str]) -> None:
    """Refuse extra losses that have the name of another column, or no valid name.

    Raises:
        InputError: Naming the loss.
    """
    seen = set(taken)
    for loss in losses:
        if loss.name in seen or not loss.name.isidentifier():
            raise InputError(
                f"an extra loss needs a name of its own that is an identifier, got {loss.name!r}: ExtraLoss(…, name=…)"
            )
        seen.add(loss.name)


def modules_of(losses: Iterable[ExtraLoss]) -> list[nn.Module]:
    """The functions of the extra losses, as far as they are modules.

    Raises:
        InputError: If one is not an extra loss.
    """
    for loss in losses:
        if not isinstance(loss, ExtraLoss):
            raise InputError(f"an extra loss is an ExtraLoss(function, player), got {type(loss).__name__}")
    return [loss.module for loss in losses if loss.module is not None]


def parameters_of(player: Player, hierarchy: Hierarchy, discriminator: nn.Module | None) -> list[nn.Parameter]:
    """The parameters of a player that are trained."""
    modules: list[nn.Module] = []
    if player == "discriminator":
        modules += [discriminator] if discriminator is not None else []
    elif player == "generators":
        modules.append(hierarchy)
    elif player == "encoder":
        modules += [link.up for link in hierarchy]
    else:
        modules += [*(link.down for link in hierarchy), hierarchy.prior]
    parameters = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    return list(parameters.values())


def add_gradients(loss: ExtraLoss, context: StepContext) -> Tensor:
    """Add the gradient of a loss over the parameters of its player to ``.grad``.

    Returns:
        The loss, ``()``, detached, without its weight.

    Raises:
        InputError: If the function does not return a single number.
    """
    value = loss.function(context.detached if loss.samples == "constant" else context)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"the extra loss {loss.name} must return a tensor (), got {got}")
    value = value.reshape(())
    parameters = parameters_of(loss.player, context.hierarchy, context.discriminator)
    if loss.module is not None:
        parameters += [p for p in loss.module.parameters() if p.requires_grad]
    if value.requires_grad and parameters:
        torch.autograd.backward(loss.weight * value, inputs=parameters, retain_graph=True)
    return value.detach().float()
