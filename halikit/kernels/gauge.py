"""The gauge of a latent: its location and scale, fixed by batch statistics of the kernel that draws it.

Nothing else fixes them for a latent between two others: without a gauge, encoder and decoder drift and do not couple.
The paper does not say how its latents get theirs; ours is the normalisation of Ioffe & Szegedy (2015).
"""

from __future__ import annotations

from typing import Literal, get_args

from einops import rearrange
from torch import Tensor, nn

from halikit.spaces import Space

__all__ = ["Gauge", "Normalise", "check_evaluates", "check_gauge"]

Gauge = Literal["standardised", "variance_preserving"]


def check_gauge(gauge: str | None, where: object) -> None:
    """Refuse a gauge that does not exist.

    Raises:
        ValueError: Naming ``where``.
    """
    if gauge not in (None, *get_args(Gauge)):
        raise ValueError(f"{where}: gauge is None, 'standardised' or 'variance_preserving', got {gauge!r}")


def check_evaluates(kernel: nn.Module) -> None:
    """Refuse the density of a kernel with a gauge in training mode.

    Raises:
        RuntimeError: If the kernel is in training mode.
    """
    if kernel.training:
        raise RuntimeError(
            f"{kernel!s} has a {kernel.gauge} gauge: in training mode its batch statistics couple the samples and no "
            "density of one sample exists; call .eval() first"
        )


class Normalise(nn.BatchNorm1d):
    """Normalises each channel of states by batch statistics in training, and by running ones in evaluation.

    Args:
        space: Space of the states. Their first dimension is the channels; a scalar has one.
    """

    def __init__(self, space: Space) -> None:
        super().__init__(space.shape[0] if space.rank else 1, affine=False)
        self.space = space

    def forward(self, states: Tensor) -> Tensor:
        """The normalised states, ``(n, *space.shape)``.

        Raises:
            ValueError: If a training batch has fewer than two states.
        """
        rows = self._rows(states)
        if self.training and len(rows) < 2:
            raise ValueError(
                f"the gauge on {self.space} cannot train on a batch of {'one' if len(rows) else 'none'}: there is no "
                "batch to take statistics of"
            )
        normalised: Tensor = super().forward(rows.squeeze(-1) if rows.shape[-1] == 1 else rows)
        return normalised.reshape(states.shape)

    def statistics(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, shaped to broadcast over states ``(n, *space.shape)``.

        Those of the batch in training, the running ones in evaluation; the running ones do not change.
        """
        if self.training:
            rows = self._rows(states)
            mean, variance = rows.mean((0, 2)), rows.var((0, 2), unbiased=False)
        else:
            assert self.running_mean is not None
            assert self.running_var is not None
            mean, variance = self.running_mean, self.running_var
        shape = (self.num_features, *[1] * (self.space.rank - 1)) if self.space.rank else ()
        return mean.reshape(shape), (variance + self.eps).sqrt().reshape(shape)

    def _rows(self, states: Tensor) -> Tensor:
        """The states with all positions in one dimension, ``(n, channels, positions)``."""
        rows: Tensor = rearrange(states, "n c ... -> n c (...)" if self.space.rank else "n -> n 1 1")
        return rows
