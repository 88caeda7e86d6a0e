"""A number that comes out of a probability, with what it is worth."""

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
    """A number, and whether it is exact, an estimate, or a bound.

    A bound that has a standard error is stochastic: its expectation is the bound.

    Attributes:
        value: In ``unit``.
        kind: What it is of the quantity that it is called after.
        unit: Such as ``nats``; empty for a pure number.
        standard_error: Of the value, where it is a mean over draws or data.
        count: How many independent ones it is a mean over.
    """

    value: float
    kind: Kind
    unit: str = ""
    standard_error: float | None = None
    count: int | None = None

    @classmethod
    def mean(cls, values: Tensor, kind: Kind, unit: str = "") -> Quantity:
        """The mean of independent values ``(n,)`` with its standard error; none for a single value."""
        values = values.double()
        error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
        return cls(float(values.mean()), kind, unit, error, len(values))

    def as_dict(self) -> dict[str, Any]:
        """Its attributes by name, as JSON takes them."""
        return asdict(self)

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2g}"
        unit = f" {self.unit}" if self.unit else ""
        count = "" if self.count is None else f", n = {self.count:,}"
        return f"{self.value:.4g}{error}{unit} ({self.kind}{count})"


def without_nan(values: Iterable[float]) -> list[float | None]:
    """Numbers as JSON takes them: ``None`` in place of NaN."""
    return [None if math.isnan(value) else value for value in values]
