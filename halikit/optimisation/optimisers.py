"""The built-in optimiser: its settings, the schedule of its learning rate, and how Adam is made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Adam

from halikit.settings import Fraction, Rate, Section

__all__ = ["OptimiserSettings", "make_optimiser", "rate_share", "trained"]


class OptimiserSettings(Section):
    """Adam for both players, and the schedule of the learning rates, which counts steps."""

    learning_rate: Rate = Field(3e-4, description="learning rate of encoder and decoder")
    discriminator_learning_rate: Rate | None = Field(
        None, description="learning rate of the discriminator, if it differs"
    )
    betas: tuple[Fraction, Fraction] = Field((0.5, 0.999), description="decay rates of Adam's two moments")
    final_rate_share: Rate = Field(1.0, description="share of the learning rates that is left at the last step")
    decay_from: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="share of the steps after which the learning rates begin to fall, linearly"
    )

    def rate(self, player: str) -> float:
        """The learning rate of a player at the start: ``"discriminator"``, or any other name for the generators."""
        return (player == "discriminator" and self.discriminator_learning_rate) or self.learning_rate


def rate_share(settings: OptimiserSettings, step: int, total: int) -> float:
    """The learning rates in a step as a share of those at the start, in (0, 1].

    Args:
        settings: Schedule of the learning rates.
        step: The step, counted from 0.
        total: Total number of steps.
    """
    start = settings.decay_from * total
    if step <= start:
        return 1.0
    return 1 - (1 - settings.final_rate_share) * min(1.0, (step - start) / (total - start))


def make_optimiser(module: nn.Module, rate: float, betas: tuple[float, float]) -> Adam:
    """Fused Adam for the parameters of a module that need gradients."""
    # All parameters of a player may be frozen, but Adam raises if it has none.
    parameters: list[Tensor] = [parameter for _, parameter in trained(module)]
    return Adam(parameters or [torch.zeros(0)], lr=rate, betas=betas, fused=True)


def trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a module that need gradients, by name."""
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)
