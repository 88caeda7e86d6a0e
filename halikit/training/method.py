"""What a step of training is: an interface with one class for each way to train."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from halikit.data import Split
from halikit.hierarchy import Hierarchy

__all__ = ["Method"]


class Method(ABC):
    """One way to train a model. It adds gradients; it owns no optimiser.

    Attributes:
        columns: Names of all losses that :meth:`add_gradients` can return.
        single_pass: Whether one backward pass serves both players.
        description: What a step is, in words.
        compile_mode: Mode of ``torch.compile`` for the step as one graph, if the method can be compiled; the trainer
            sets it.
        trains_decoder: Whether the decoder is trained, so that reconstructions and samples mean something.
    """

    columns: tuple[str, ...]
    single_pass = False
    description: str
    compile_mode: str | None = None
    trains_decoder = True

    @abstractmethod
    def add_gradients(
        self, x: Tensor, labels: Tensor | None, step: int, total: int, *, context: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Add the gradients of a step to ``.grad``.

        Args:
            x: Batch, ``(n, *shape of x)``.
            labels: Its labels, ``(n,)`` int64, if there are any.
            step: Number of the step, counted from 0.
            total: Number of steps of the training.
            context: Context of the batch, ``(n, …)``, if the model takes one.

        Returns:
            The losses of the step by name, ``()`` each, detached; those alone that were taken in this step.
        """

    @property
    def extra_modules(self) -> dict[str, tuple[nn.Module, str]]:
        """Modules beside the model's that are trained or have a state: each by name, with the player it belongs to."""
        return {}

    def kind(self, step: int) -> object:
        """What tells steps of different cost apart, for a step counted from 0."""
        return None

    def measure(self, averaged: Hierarchy, part: Split) -> dict[str, float]:
        """Numbers on held-out data for the record, by name, beside the errors.

        Args:
            averaged: The hierarchy in evaluation mode, given the contexts of the data if it takes one.
            part: The data.
        """
        return {}

    def finish(self) -> None:  # noqa: B027 (most methods change nothing that they would have to put back)
        """Put back what was changed in the model for training."""
