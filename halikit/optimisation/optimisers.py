"""The optimisers of the modules that train, their learning rates, and their states by the names of the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Adam

from halikit.errors import InputError
from halikit.settings import Fraction, Rate, Section

__all__ = ["OptimiserSettings", "fill_optimiser", "make_optimiser", "optimiser_tensors", "rate_share"]

# What Adam keeps of each parameter; the first is a number.
_QUANTITIES = ("step", "exp_avg", "exp_avg_sq")


class OptimiserSettings(Section):
    """Adam for both players, and how the learning rates fall. Schedules count steps, never seconds."""

    learning_rate: Rate = Field(3e-4, description="learning rate of encoder and decoder")
    discriminator_learning_rate: Rate | None = Field(None, description="learning rate of the discriminator, if another")
    betas: tuple[Fraction, Fraction] = Field((0.5, 0.999), description="decay rates of Adam's two moments")
    final_rate_share: Rate = Field(1.0, description="share of the learning rates that is left at the last step")
    decay_from: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="share of the steps after which the learning rates begin to fall, linearly"
    )

    def rate(self, player: str) -> float:
        """The full learning rate of a player: ``"discriminator"``, or any other."""
        return (player == "discriminator" and self.discriminator_learning_rate) or self.learning_rate


def rate_share(settings: OptimiserSettings, step: int, total: int) -> float:
    """The share of the full learning rates in a step, in (0, 1].

    Args:
        settings: How the rates fall.
        step: The step, counted from 0.
        total: Number of steps in all.
    """
    start = settings.decay_from * total
    if step <= start:
        return 1.0
    return 1 - (1 - settings.final_rate_share) * min(1.0, (step - start) / (total - start))


def make_optimiser(module: nn.Module, rate: float, betas: tuple[float, float]) -> Adam:
    """Fused Adam for the parameters of a module that are trained."""
    # A player may be frozen as a whole, but Adam refuses to have no parameter.
    parameters: list[Tensor] = [parameter for _, parameter in _trained(module)]
    return _LeanAdam(parameters or [torch.zeros(0)], lr=rate, betas=betas, fused=True)


def optimiser_tensors(optimiser: Adam, module: nn.Module, part: str) -> dict[str, Tensor]:
    """The state of a module's optimiser, as ``part.quantity.parameter``; parameters that never moved have none."""
    return {
        f"{part}.{quantity}.{name}": optimiser.state[parameter][quantity]
        for name, parameter in _trained(module)
        if optimiser.state.get(parameter)
        for quantity in _QUANTITIES
    }


def fill_optimiser(path: Path, optimiser: Adam, module: nn.Module, tensors: Mapping[str, Tensor], part: str) -> None:
    """Load those of :func:`optimiser_tensors` that are of ``part``.

    Raises:
        InputError: If they are not those of the module's parameters; ``path`` is where they are from.
    """
    states: dict[int, dict[str, Tensor]] = {}
    places = {p: i for i, p in enumerate(p for group in optimiser.param_groups for p in group["params"])}
    for name, parameter in _trained(module):
        found = {q: tensors[key] for q in _QUANTITIES if (key := f"{part}.{q}.{name}") in tensors}
        if not found:
            continue
        shapes = {quantity: () if quantity == "step" else parameter.shape for quantity in _QUANTITIES}
        if {quantity: tensor.shape for quantity, tensor in found.items()} != shapes:
            raise InputError(f"{path} does not fit the model: the state of {part}.{name} has other shapes")
        # In the parameter's own memory format, which fused optimisers take for granted.
        states[places[parameter]] = {
            q: t if q == "step" else torch.empty_like(parameter).copy_(t) for q, t in found.items()
        }
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})


class _LeanAdam(Adam):
    """Torch's fused Adam without what surrounds it, which on a CPU takes as long for small models as Adam itself."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the parameters that have gradients, unless the guard has found one that is not finite."""
        groups = [([p for p in group["params"] if p.grad is not None], group) for group in self.param_groups]
        moving = [parameter for moved, _ in groups for parameter in moved]
        found: Tensor | None = getattr(self, "found_inf", None)
        if not moving or moving[0].device.type != "cpu" or not all(self.state.get(parameter) for parameter in moving):
            super().step()
            return
        if found is not None and found:  # on a CPU there is nothing to wait for
            return
        for moved, group in groups:
            if not moved:
                continue
            quantities = ([self.state[parameter][quantity] for parameter in moved] for quantity in _QUANTITIES)
            steps, means, squares = quantities
            # Tensors add up faster than a tensor and a number, which is made one each time.
            torch._foreach_add_(steps, [torch.ones(())] * len(steps))
            torch._fused_adam_(
                moved,
                [parameter.grad for parameter in moved],
                means,
                squares,
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=0.0,
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)
