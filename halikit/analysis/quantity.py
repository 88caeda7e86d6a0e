"""A number that comes out of a probability, with its kind and its standard error."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

__all__ = ["Kind", "Quantity", "without_nan"]

Kind = Literal["exact", "estimate", "lower bound", "upper bound"]


@dataclass(frozen=True)
class Quantity:
    """A number, and whether it is exact, an estimate or a bound.

    A bound with a standard error is stochastic: its expectation is the bound.

    Attributes:
        value: The number, in ``unit``.
        kind: Whether it is exact, an estimate or a bound.
        unit: Unit, such as ``nats``; empty for a pure number.
        standard_error: Standard error of the value, where it is a mean over draws or data.
        count: Number of independent draws or data that it is a mean over.
    """

    value: float
    kind: Kind
    unit: str = ""
    standard_error: float | None = None
    count: int | None = None

    @classmethod
    def mean(cls, values: Tensor, kind: Kind, unit: str = "") -> Quantity:
        """The mean of independent values ``(n,)``, with its standard error if there are two or more."""
        values = values.double()
        return cls(float(values.mean()), kind, unit, _standard_error(values), len(values))

    @classmethod
    def mean_over_data(cls, values: Tensor, kind: Kind, unit: str = "") -> Quantity:
        """The mean of numbers of this kind, ``(n,)``, one for each datum; a mean of exact numbers is an estimate."""
        return cls.mean(values, "estimate" if kind == "exact" else kind, unit)

    @classmethod
    def root_mean_square(cls, squares: Tensor, kind: Kind, unit: str = "") -> Quantity:
        """The square root of the mean of squares, such as the mean squared error of each image.

        The standard error is that of the mean divided by ``2 · value`` (delta method).

        Args:
            squares: ``(n,)``, independent; each may be a mean over the elements of a datum.
            kind: Whether the value is exact, an estimate or a bound.
            unit: Unit of the root.
        """
        squares = squares.double()
        error = _standard_error(_linearised_root(squares))
        return cls(float(squares.mean().sqrt()), kind, unit, error, len(squares))

    @classmethod
    def root_mean_square_difference(cls, squares: Tensor, others: Tensor, kind: Kind, unit: str = "") -> Quantity:
        """The root mean square of one set of squares less that of another, on the same data.

        The standard error takes the data in pairs (delta method): what both sets share does not count.

        Args:
            squares: ``(n,)``, one for each datum.
            others: ``(n,)``, for the same data in the same order.
            kind: Whether the value is exact, an estimate or a bound.
            unit: Unit of the roots.
        """
        squares, others = squares.double(), others.double()
        error = _standard_error(_linearised_root(squares) - _linearised_root(others))
        return cls(float(squares.mean().sqrt() - others.mean().sqrt()), kind, unit, error, len(squares))

    def as_dict(self) -> dict[str, Any]:
        """The attributes by name, as JSON takes them."""
        return asdict(self)

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2g}"
        unit = f" {self.unit}" if self.unit else ""
        count = "" if self.count is None else f", n = {self.count:,}"
        return f"{self.value:.4g}{error}{unit} ({self.kind}{count})"


def without_nan(values: Iterable[float]) -> list[float | None]:
    """Numbers as JSON takes them: ``None`` in place of NaN."""
    return [None if math.isnan(value) else value for value in values]


def _standard_error(values: Tensor) -> float | None:
    """The standard error of the mean of independent values ``(n,)``; ``None`` for a single one."""
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else None


def _linearised_root(squares: Tensor) -> Tensor:
    """``s / (2 √mean(s))``, ``(n,)``: the mean of these changes as ``√mean(s)`` does, to first order."""
    root = squares.mean().sqrt()
    # Where the mean is 0 all squares are 0.
    return squares / (2 * root.clamp_min(1e-300))
