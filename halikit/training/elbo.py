"""Training on the evidence lower bound: the variational autoencoder, a baseline (sections 5.2 and 7.1)."""

from __future__ import annotations

import pyro
import torch
from torch import Tensor

from halikit.data import Split
from halikit.elbo import check_trains_by_elbo, negative_elbo
from halikit.hierarchy import Hierarchy
from halikit.model import Model
from halikit.training.method import Method

__all__ = ["ElboMethod"]


class ElboMethod(Method):
    """Descent on the evidence lower bound; see :mod:`halikit.elbo`.

    Args:
        model: A model whose kernels all have densities, none with a gauge.

    Raises:
        InputError: If a kernel has no density or has a gauge.
    """

    columns = ("negative_elbo",)
    description = "descent on the evidence lower bound"

    def __init__(self, model: Model) -> None:
        check_trains_by_elbo(model.hierarchy)
        self._hierarchy = model.hierarchy
        self._is_validated = False

    def add_gradients(
        self, x: Tensor, labels: Tensor | None, step: int, total: int, *, context: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One step of descent."""
        # Pyro's validation finds data outside of a support in the first step. In each step it would raise errors for
        # NaN, where the guard of the training skips the step, and let the host wait for the device.
        with pyro.validation_enabled(not self._is_validated):
            loss = negative_elbo(self._hierarchy.conditioned(context), x)
            loss.backward()
        self._is_validated = True
        return {"negative_elbo": loss.detach()}

    def measure(self, averaged: Hierarchy, part: Split) -> dict[str, float]:
        """The bound on held-out data, with running statistics."""
        return {"held_out_negative_elbo": float(negative_elbo(averaged, part.batch(torch.arange(len(part)))))}
