"""The optimisers of a model's parts, and their states by the names of the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Adam

from halikit.config import TrainingConfig
from halikit.model import Model, ModelError

__all__ = ["fill_optimiser", "make_optimisers", "optimiser_tensors"]

# What Adam keeps of each parameter; the first is a number.
_QUANTITIES = ("step", "exp_avg", "exp_avg_sq")


def make_optimisers(model: Model, settings: TrainingConfig) -> tuple[Adam, ...]:
    """One for each part of a model: the hierarchy, and the discriminator if there is one."""
    rates = {
        "hierarchy": settings.learning_rate,
        "discriminator": settings.discriminator_learning_rate or settings.learning_rate,
    }
    return tuple(_adam(part, rates[name], settings.betas) for name, part in model.parts.items())


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
        ModelError: If they are not those of the module's parameters; ``path`` is where they are from.
    """
    states: dict[int, dict[str, Tensor]] = {}
    places = {p: i for i, p in enumerate(p for group in optimiser.param_groups for p in group["params"])}
    for name, parameter in _trained(module):
        found = {q: tensors[key] for q in _QUANTITIES if (key := f"{part}.{q}.{name}") in tensors}
        if not found:
            continue
        shapes = {quantity: () if quantity == "step" else parameter.shape for quantity in _QUANTITIES}
        if {quantity: tensor.shape for quantity, tensor in found.items()} != shapes:
            raise ModelError(f"{path} does not fit the model: the state of {part}.{name} has other shapes")
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


def _adam(module: nn.Module, rate: float, betas: tuple[float, float]) -> Adam:
    # A player may be frozen whole, but Adam refuses to have nothing to do.
    parameters: list[Tensor] = [parameter for _, parameter in _trained(module)]
    parameters = parameters or [torch.zeros(0)]
    return _LeanAdam(parameters, lr=rate, betas=betas, fused=True)
