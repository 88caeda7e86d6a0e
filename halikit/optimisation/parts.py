"""The optimiser of one part of a model: the built-in Adam or the user's own, with its schedule, its state by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from halikit.errors import InputError
from halikit.optimisation.optimisers import OptimiserSettings, make_optimiser, trained
from halikit.utils.packing import packed, unpacked

__all__ = ["OptimiserFactory", "PartOptimiser", "SchedulerFactory"]

# From the name of a part ("hierarchy", "discriminator", or an extra loss) and its module to the optimiser of the part.
OptimiserFactory = Callable[[str, nn.Module], Optimizer]
# From the name of a part and its optimiser to a schedule, which is stepped after each step of the training.
SchedulerFactory = Callable[[str, Optimizer], LRScheduler]


class PartOptimiser:
    """Moves the parameters of one part.

    The learning rates are those of the settings, with their schedule; or those of the user's optimiser and schedule.

    Args:
        name: Name of the part.
        module: The part.
        player: The player whose settings apply, ``"discriminator"`` or another name for the generators.
        settings: Settings of the built-in Adam and its schedule.
        optimisers: Makes an optimiser of the user's own, in place of Adam.
        schedulers: Makes a schedule of the user's own, in place of that of the settings.

    Raises:
        InputError: If what the user's functions return is not fit for a training.

    Attributes:
        optimiser: The optimiser.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        player: str,
        settings: OptimiserSettings,
        optimisers: OptimiserFactory | None = None,
        schedulers: SchedulerFactory | None = None,
    ) -> None:
        self._name, self._module = name, module
        self._rate = settings.rate(player)
        self._is_built_in = optimisers is None
        self.optimiser: Optimizer = (
            optimisers(name, module) if optimisers else make_optimiser(module, self._rate, settings.betas)
        )
        self._check_optimiser()
        self._scheduler = schedulers(name, self.optimiser) if schedulers else None
        self._check_scheduler(has_own=schedulers is not None)

    def step(self, is_bad: Tensor, share: float, scheduled: float) -> None:
        """Take a step, and one of the user's schedule.

        Args:
            is_bad: Flag on the device, not zero if the step is to be skipped.
            share: Factor of all learning rates.
            scheduled: Factor of the settings' schedule; it does not apply to optimisers and schedules of the user.
        """
        groups = self.optimiser.param_groups
        has_own_rates = not self._is_built_in or self._scheduler is not None
        before = [group["lr"] for group in groups]
        for group, rate in zip(groups, before, strict=True):
            group["lr"] = rate * share if has_own_rates else self._rate * (share * scheduled)
        if self._is_built_in:
            self.optimiser.found_inf = is_bad  # type: ignore[attr-defined]  # read by fused Adam, on the device
            self.optimiser.step()
        elif not is_bad:  # not every optimiser reads the flag, so the host does, and waits for the device
            self.optimiser.step()
        if has_own_rates:
            for group, rate in zip(groups, before, strict=True):
                group["lr"] = rate
        if self._scheduler is not None:
            self._scheduler.step()

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the state by name, ``optimiser.part.quantity.parameter``; without those never updated."""
        return {
            f"optimiser.{self._name}.{quantity}.{name}": value
            for name, parameter in trained(self._module)
            for quantity, value in self.optimiser.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def facts(self) -> dict[str, Any]:
        """The rest of the state as JSON values: nothing for the built-in Adam under the settings' schedule."""
        facts: dict[str, Any] = {}
        if not self._is_built_in:
            facts["optimiser"] = type(self.optimiser).__name__
            facts["numbers"] = {
                f"{quantity}.{name}": packed(value, f"the optimiser of {self._name}")
                for name, parameter in trained(self._module)
                for quantity, value in self.optimiser.state.get(parameter, {}).items()
                if not isinstance(value, Tensor)
            }
        if self._scheduler is not None:
            facts["scheduler"] = type(self._scheduler).__name__
            facts["schedule"] = packed(self._scheduler.state_dict(), f"the scheduler of {self._name}")
        if facts:
            groups = [{key: v for key, v in group.items() if key != "params"} for group in self.optimiser.param_groups]
            facts["groups"] = packed(groups, f"the optimiser of {self._name}")
        return facts

    def fill(self, path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Load a state.

        Args:
            path: File that the state comes from, for the message.
            tensors: The tensors of several parts, named as by :meth:`tensors`.
            facts: The rest of this part, as from :meth:`facts`.

        Raises:
            InputError: If it is of another optimiser or schedule, or of parameters of other shapes.
        """
        self._check_same(path, facts)
        places = {p: i for i, p in enumerate(p for group in self.optimiser.param_groups for p in group["params"])}
        numbers = {name: unpacked(value) for name, value in facts.get("numbers", {}).items()}
        states: dict[int, dict[str, Any]] = {}
        for name, parameter in trained(self._module):
            state: dict[str, Any] = {}
            for prefix, values in ((f"optimiser.{self._name}.", tensors), ("", numbers)):
                for quantity in _quantities(values, prefix, name):
                    state[quantity] = values[f"{prefix}{quantity}.{name}"]
            if state:
                states[places[parameter]] = self._fitting(path, name, parameter, state)
        groups = self.optimiser.state_dict()["param_groups"]
        if "groups" in facts:
            groups = [now | then for now, then in zip(groups, unpacked(facts["groups"]), strict=True)]
        self.optimiser.load_state_dict({"state": states, "param_groups": groups})
        if self._scheduler is not None:
            self._scheduler.load_state_dict(unpacked(facts["schedule"]))

    def _fitting(self, path: Path, name: str, parameter: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        """The state of a parameter, checked as far as its shapes are known."""
        known = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
        shapes = {quantity: getattr(value, "shape", ()) for quantity, value in state.items()}
        expected = known if self._is_built_in else {q: known.get(q, shape) for q, shape in shapes.items()}
        if shapes != expected:
            raise InputError(
                f"{path} does not fit the model: the state of optimiser.{self._name}.{name} has other shapes"
            )
        # Fused optimisers need the states in the memory format of the parameter.
        return {
            quantity: torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim()
            else value
            for quantity, value in state.items()
        }

    def _check_optimiser(self) -> None:
        place = f"optimisers({self._name!r}, module)"
        if not isinstance(self.optimiser, Optimizer):
            raise InputError(f"{place} must return a torch.optim.Optimizer, got {type(self.optimiser).__name__}")
        moved = {id(p) for group in self.optimiser.param_groups for p in group["params"]}
        left_out = [name for name, parameter in trained(self._module) if id(parameter) not in moved]
        if left_out:
            raise InputError(
                f"{place} leaves out {', '.join(left_out[:3])}: give it all parameters, and freeze those that are not "
                "to be trained with requires_grad_(False)"
            )

    def _check_scheduler(self, *, has_own: bool) -> None:
        counts_steps = isinstance(self._scheduler, LRScheduler) and not isinstance(self._scheduler, ReduceLROnPlateau)
        if has_own and not counts_steps:
            raise InputError(
                f"schedulers({self._name!r}, optimiser) must return a schedule of torch.optim.lr_scheduler that counts "
                f"steps, got {type(self._scheduler).__name__}"
            )

    def _check_same(self, path: Path, facts: Mapping[str, Any]) -> None:
        own = {"optimiser": None if self._is_built_in else type(self.optimiser).__name__}
        own["scheduler"] = None if self._scheduler is None else type(self._scheduler).__name__
        for kind, name in own.items():
            if facts.get(kind) != name:
                words = [each or f"the built-in {kind}" for each in (facts.get(kind), name)]
                raise InputError(
                    f"{path} is of a training whose {kind} for {self._name} was {words[0]}, and here it is {words[1]}; "
                    f"give the trainer the same {kind}s"
                )


def _quantities(values: Mapping[str, Any], prefix: str, name: str) -> list[str]:
    """The quantities that are named ``prefix quantity . name``."""
    ends = [key for key in values if key.startswith(prefix) and key.endswith(f".{name}")]
    found = [key[len(prefix) : -len(name) - 1] for key in ends]
    return [quantity for quantity in found if quantity and "." not in quantity]
