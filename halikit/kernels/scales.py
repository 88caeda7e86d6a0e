"""Bounded scales, for every kernel whose network gives a raw scale."""

from __future__ import annotations

from torch import Tensor

__all__ = ["MIN_SCALE", "SLEEP_SCALE", "bounded_scale", "check_max_scale"]

# log σ is in [−3, 3] if there is no upper bound of the scale. An unbounded exp overflowed at the first step of a model
# with three levels.
_LOG_SCALE_BOUND = 3.0
# The smallest scale if there is an upper bound.
MIN_SCALE = 1e-3
# The smallest scale in the loss of the sleep phase; otherwise nearly deterministic levels would dominate the loss.
SLEEP_SCALE = 0.1


def bounded_scale(raw: Tensor, max_scale: float | None) -> Tensor:
    """A scale from any real number, by a smooth function.

    Args:
        raw: ``a``, any shape.
        max_scale: Upper bound, above 0.001; ``None`` for no more than ``exp(3)``.

    Returns:
        ``0.001 + (max_scale − 0.001) · sigmoid(a)``, or ``exp(3 tanh(a/3))`` without an upper bound.
    """
    if max_scale is None:
        return (_LOG_SCALE_BOUND * (raw / _LOG_SCALE_BOUND).tanh()).exp()
    return MIN_SCALE + (max_scale - MIN_SCALE) * raw.sigmoid()


def check_max_scale(kernel: object, max_scale: float | None) -> None:
    """Check an upper bound of a scale.

    Raises:
        ValueError: If it is not above 0.001.
    """
    if max_scale is not None and not max_scale > MIN_SCALE:
        raise ValueError(f"{kernel}: max_scale is an upper bound above {MIN_SCALE}, got {max_scale}")
