"""Networks that read a context, such as the class of each datum, beside what is given."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from halikit.errors import InputError

__all__ = ["Conditional", "ContextEmbedding", "embedding_width"]

# The widest default embedding.
_WIDEST = 32


def embedding_width(size: int) -> int:
    """The default width of the embedding of ``size`` classes or attributes."""
    return min(size, _WIDEST)


class ContextEmbedding(nn.Module):
    """A trained linear map of a context: of classes as one-hot vectors, or of attributes.

    Args:
        size: Number of classes or attributes, K.
        width: Number of elements of the embedding; at most 32 by default.
        scale: Standard deviation of the initial weights.

    Attributes:
        width: Number of elements of the embedding.
    """

    def __init__(self, size: int, width: int | None = None, *, scale: float = 1.0) -> None:
        super().__init__()
        self.width = embedding_width(size) if width is None else width
        self.weight = nn.Parameter(scale * torch.randn(size, self.width))

    def forward(self, context: Tensor) -> Tensor:
        """``(n, width)``.

        Args:
            context: Classes, ``(n,)`` int64 from 0 to K − 1, or K numbers for each datum, ``(n, K)`` floats.

        Raises:
            InputError: If the context is neither, or there is no such class.
        """
        size = len(self.weight)
        if context.dim() == 1 and not context.is_floating_point():
            try:
                return embedding(context.long(), self.weight)
            except IndexError:
                raise InputError(
                    f"a class of the context lies between 0 and {size - 1}, got {int(context.min())} to "
                    f"{int(context.max())}"
                ) from None
        if context.dim() == 2 and context.shape[1] == size:
            return context.to(self.weight.dtype) @ self.weight
        raise InputError(
            f"a context is (n,) int64 of {size} classes, or (n, {size}) numbers; got {tuple(context.shape)} of "
            f"{context.dtype}"
        )

    def extra_repr(self) -> str:
        """The number of classes or attributes and the width."""
        return f"{len(self.weight)} → {self.width}"


class Conditional(nn.Module):
    """A network that reads the embedding of a context beside its input, as further elements or channels.

    Args:
        network: Takes ``(n, D + width)`` or ``(n, C + width, *size)``.
        embedding: Embedding of the context.
        flat: Whether the input is flattened first.
    """

    takes_context = True

    def __init__(self, network: nn.Module, embedding: ContextEmbedding, *, flat: bool = False) -> None:
        super().__init__()
        self.embedding, self.network, self.flat = embedding, network, flat

    def forward(self, given: Tensor, context: Tensor) -> Tensor:
        """The network's output.

        Args:
            given: ``(n, D)`` or ``(n, C, *size)``.
            context: ``(n,)`` classes or ``(n, K)`` numbers.
        """
        given = given.flatten(1) if self.flat else given
        size = given.shape[2:]
        features = self.embedding(context).to(given.dtype)
        spread = features.reshape(*features.shape, *[1] * len(size)).expand(-1, -1, *size)
        out: Tensor = self.network(torch.cat([given, spread], 1))
        return out
