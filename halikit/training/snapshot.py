"""Everything that the steps to come depend on: what a checkpoint holds, and how it is restored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halikit.config import Config
from halikit.model import fill, named_tensors
from halikit.optimisation.guard import Guard
from halikit.optimisation.parts import PartOptimiser
from halikit.runs.checkpoints import Checkpoint, CheckpointError, State
from halikit.training.meter import Meter

__all__ = ["Snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """The state of a training, to be written to and restored from a checkpoint.

    Attributes:
        modules: All modules with a state, by name.
        optional: Names of modules that start anew where a checkpoint does not have them.
        optimisers: An optimiser for each module that trains, by the name of the module.
        guard: Its counts of skipped steps.
        meter: Its losses since the last record.
    """

    modules: Mapping[str, nn.Module]
    optional: frozenset[str]
    optimisers: Mapping[str, PartOptimiser]
    guard: Guard
    meter: Meter

    @property
    def size(self) -> int:
        """Bytes that a checkpoint takes: all weights, and twice those that are trained for their optimisers."""
        trained = sum(p.nbytes for name in self.optimisers for p in self.modules[name].parameters() if p.requires_grad)
        return 2 * trained + sum(tensor.nbytes for tensor in named_tensors(self.modules).values())

    def take(self, step: int, config: Config, surroundings: Mapping[str, str], rate_share: float) -> State:
        """The state after a step.

        Args:
            step: Steps so far.
            config: The settings.
            surroundings: What must be the same for identical results; see :func:`halikit.training.resume.surroundings`.
            rate_share: Share of the learning rates; lower once training had to go back to a checkpoint.
        """
        facts = {
            "step": step,
            "seconds": self.meter.seconds(),
            "rate_share": rate_share,
            "columns": list(self.meter.columns),
            "config": config.model_dump(mode="json"),
            "surroundings": dict(surroundings),
            "optimisers": self._facts(),
        }
        return State(self._tensors() | {"unread": self.meter.unread()}, facts)

    def restore(self, checkpoint: Checkpoint, device: torch.device) -> Mapping[str, Any]:
        """Bring the training into the state of a checkpoint.

        Returns:
            The facts of the checkpoint.

        Raises:
            InputError: If the checkpoint does not fit the model.
        """
        path, tensors, facts = checkpoint.path, checkpoint.tensors(), checkpoint.facts
        try:
            self._fill(path, tensors, facts.get("optimisers", {}))
            self.meter.restore(tensors["unread"].to(device), facts["columns"], facts["seconds"])
        except (KeyError, IndexError, RuntimeError, TypeError) as error:
            raise CheckpointError(f"{path} does not fit the model: {error}") from None
        return facts

    @contextmanager
    def undone(self) -> Iterator[int]:
        """Put back at the end whatever steps change within the context, except the meter and the number of steps.

        Yields:
            Bytes of the copy that is kept meanwhile, in the memory of the host.
        """
        saved = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._tensors().items()}
        facts = self._facts()
        try:
            yield sum(tensor.nbytes for tensor in saved.values())
        finally:
            self._fill(Path("memory"), saved, facts)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = named_tensors(self.modules)
        for part in self.optimisers.values():
            tensors |= part.tensors()
        return tensors | {"skipped": self.guard.counts}

    def _facts(self) -> dict[str, Any]:
        found = {name: part.facts() for name, part in self.optimisers.items()}
        return {name: facts for name, facts in found.items() if facts}

    def _fill(self, path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        for name, module in self.modules.items():
            if name not in self.optional or any(key.startswith(f"{name}.") for key in tensors):
                fill(path, module, tensors, name)
        for name, part in self.optimisers.items():
            part.fill(path, tensors, facts.get(name, {}))
        self.guard.counts.copy_(tensors["skipped"])
