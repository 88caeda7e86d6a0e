"""The spaces of a hierarchy: x = z_0, z_1, …, z_L (paper, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

__all__ = ["Space", "Support"]

Support = Literal["real", "unit", "bits", "one_hot", "simplex", "index"]


@dataclass(frozen=True)
class Space:
    """A named space of tensors: the source or the target of a Markov kernel.

    Two spaces are equal if their names and shapes are equal. By convention the data are in ``x`` and the latents in
    ``z1`` … ``zL``.

    Args:
        name: Name of the variable; dictionaries of states use it as the key.
        shape: Shape of one state without batch dimensions: ``(D,)`` for a vector, ``(C, T)`` for a
            sequence, ``(C, H, W)`` for an image, ``(C, D, H, W)`` for a volume, ``()`` for a scalar.
        support: Where states lie: ``"real"``, ``"unit"`` for [0, 1], ``"bits"`` for 0 or 1, ``"one_hot"``,
            ``"simplex"``, or ``"index"`` for integers. A prior is chosen by it where none is given. ``None`` if it is
            not stated, which is read as real.

    Raises:
        ValueError: If the name is not an identifier, a dimension is not a positive integer, or the support is unknown.

    Example:
        >>> str(Space("z1", (64, 16, 16)))
        'z1 (64×16×16)'
    """

    name: str
    shape: tuple[int, ...]
    support: Support | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"a space needs an identifier for a name, such as 'x' or 'z1'; got {self.name!r}")
        if not isinstance(self.shape, Iterable):
            raise ValueError(f"space {self.name!r}: a shape is a tuple such as (64,), got {self.shape!r}")
        shape = tuple(self.shape)
        if not all(isinstance(d, int) and d > 0 for d in shape):
            raise ValueError(f"space {self.name!r}: every dimension must be a positive integer, got {shape}")
        if self.support not in (None, *get_args(Support)):
            raise ValueError(
                f"space {self.name!r}: a support is one of {', '.join(get_args(Support))}, got {self.support!r}"
            )
        object.__setattr__(self, "shape", shape)

    @property
    def rank(self) -> int:
        """Number of dimensions of one state; a density on this space has as many event dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements of one state."""
        return math.prod(self.shape)

    @property
    def is_image(self) -> bool:
        """Whether states are feature maps ``(C, H, W)``."""
        return self.rank == 3

    @property
    def is_maps(self) -> bool:
        """Whether states are channels over 1, 2 or 3 axes: ``(C, T)``, ``(C, H, W)`` or ``(C, D, H, W)``."""
        return 2 <= self.rank <= 4

    def __str__(self) -> str:
        return f"{self.name} ({'×'.join(map(str, self.shape)) or 'scalar'})"
