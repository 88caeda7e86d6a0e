"""Differentiable augmentation of the images that a discriminator sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Augmentation", "DifferentiableAugmentation"]

Augmentation = Literal["colour", "shift", "cutout"]

# Largest shift, and side of the square that is cut out, as shares of the image's sides.
_SHIFT, _CUT = 1 / 8, 1 / 2


class DifferentiableAugmentation(nn.Module):
    """Changes each image at random in training, data and samples alike (Zhao et al. 2020, "DiffAugment").

    A discriminator that knows a small set by heart wins, and the generators learn nothing more. Here it never sees an
    image twice. Its gradient passes through the change to the generators. The latents stay as they are.

    Args:
        kinds: ``"colour"``: other brightness, saturation and contrast; ``"shift"``: by up to an eighth of the sides,
            with zeros beyond the edges; ``"cutout"``: a square with half of the sides set to zero.

    Raises:
        ValueError: If a kind is not known.
    """

    def __init__(self, kinds: Sequence[Augmentation]) -> None:
        super().__init__()
        unknown = [kind for kind in kinds if kind not in _CHANGES]
        if unknown:
            raise ValueError(f"augmentations are {', '.join(_CHANGES)}; got {unknown[0]!r}")
        self.kinds = tuple(kinds)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(n, C, H, W)`` in [−1, 1], changed in training mode."""
        if self.training:
            for kind in self.kinds:
                x = _CHANGES[kind](x)
        return x

    def extra_repr(self) -> str:
        """The kinds."""
        return ", ".join(self.kinds)


def _colour(x: Tensor) -> Tensor:
    brightness, saturation, contrast = torch.rand(3, len(x), 1, 1, 1, dtype=x.dtype, device=x.device)
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def _shift(x: Tensor) -> Tensor:
    for axis in (2, 3):
        side = x.shape[axis]
        by = torch.randint(-round(_SHIFT * side), round(_SHIFT * side) + 1, (len(x), 1), device=x.device)
        source = torch.arange(side, device=x.device) + by
        inside = ((source >= 0) & (source < side)).to(x.dtype)
        shape = (len(x), 1, side, 1) if axis == 2 else (len(x), 1, 1, side)
        index = source.clamp(0, side - 1).view(shape).expand_as(x)
        x = x.gather(axis, index) * inside.view(shape)
    return x


def _cutout(x: Tensor) -> Tensor:
    hidden = x.new_ones(())
    for axis, side in ((2, x.shape[2]), (3, x.shape[3])):
        centre = torch.randint(0, side, (len(x), 1), device=x.device)
        near = ((torch.arange(side, device=x.device) - centre).abs() < _CUT * side / 2).to(x.dtype)
        hidden = hidden * near.view((len(x), 1, side, 1) if axis == 2 else (len(x), 1, 1, side))
    return x * (1 - hidden)


_CHANGES: dict[Augmentation, Callable[[Tensor], Tensor]] = {"colour": _colour, "shift": _shift, "cutout": _cutout}
