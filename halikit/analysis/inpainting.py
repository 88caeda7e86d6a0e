"""Inpainting without having been trained for it (section 6.1, Fig. 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halikit.analysis.quantity import Quantity
from halikit.hierarchy import Hierarchy

__all__ = [
    "Inpainting",
    "InpaintingErrors",
    "centre_mask",
    "inpaint",
    "inpainting_errors",
    "rectangle_mask",
]

# Of a normal distribution, two-sided.
_Z_95 = 1.96


def centre_mask(shape: tuple[int, ...], share: float = 0.5) -> Tensor:
    """The middle of images, ``share`` of their height and width.

    Args:
        shape: ``(C, H, W)``.
        share: In (0, 1].

    Returns:
        ``(H, W)`` bool, True where pixels are missing.

    Raises:
        ValueError: If the share is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of the height and width that is missing is above 0 and at most 1, got {share}")
    height, width = (max(1, round(side * share)) for side in shape[-2:])
    return rectangle_mask(shape, (shape[-2] - height) // 2, (shape[-1] - width) // 2, height, width)


def rectangle_mask(shape: tuple[int, ...], top: int, left: int, height: int, width: int) -> Tensor:
    """A rectangle of images, in pixels.

    Args:
        shape: ``(C, H, W)``.
        top: First row that is missing, from 0.
        left: First column.
        height: Rows that are missing.
        width: Columns.

    Returns:
        ``(H, W)`` bool, True where pixels are missing.

    Raises:
        ValueError: If the rectangle is empty or not within the image.
    """
    h, w = shape[-2:]
    if not (0 <= top < top + height <= h and 0 <= left < left + width <= w):
        raise ValueError(
            f"the rectangle of {height}×{width} pixels at row {top}, column {left} does not lie within {h}×{w}"
        )
    mask = torch.zeros(h, w, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


@dataclass(frozen=True)
class Inpainting:
    """What becomes of images with missing pixels.

    Attributes:
        masked: ``(n, *shape of x)``, the missing pixels filled in to begin with.
        steps: The same shape, by the name of the latent reconstructed from: ``zL`` first, ``z1`` last.
    """

    masked: Tensor
    steps: dict[str, Tensor]

    @property
    def completed(self) -> Tensor:
        """The last step, ``(n, *shape of x)``."""
        return list(self.steps.values())[-1]


@torch.no_grad()
def inpaint(hierarchy: Hierarchy, x: Tensor, mask: Tensor, *, fill: Tensor | float = 0.0) -> Inpainting:
    """Fill in what is missing, from the top of the hierarchy down (section 6.1).

    The masked image is reconstructed along the means from level L, the known pixels are put back bit for bit, the
    result is encoded again and reconstructed from level L − 1, and so on to level 1; nothing is blended.

    Args:
        hierarchy: In evaluation mode.
        x: ``(n, *shape of x)``; what it holds where pixels are missing is not looked at.
        mask: Bool, True where missing; broadcast to ``x``: ``(H, W)`` for all images alike.
        fill: What missing pixels hold to begin with; a number, or broadcast to ``x``, such as the mean image.

    Raises:
        ValueError: If the mask does not fit.
    """
    fits = mask.dim() <= x.dim() and all(
        side in (1, whole) for side, whole in zip(reversed(mask.shape), reversed(x.shape), strict=False)
    )
    if mask.dtype != torch.bool or not fits:
        raise ValueError(f"a mask is bool and broadcasts to {tuple(x.shape)}, got {mask.dtype} of {tuple(mask.shape)}")
    mask = mask.to(x.device)
    masked = torch.where(mask, torch.as_tensor(fill, dtype=x.dtype, device=x.device), x)
    steps: dict[str, Tensor] = {}
    current = masked
    for level in range(len(hierarchy), 0, -1):
        current = torch.where(mask, hierarchy.reconstruct(current, level), x)
        steps[hierarchy.spaces[level].name] = current
    return Inpainting(masked, steps)


@dataclass(frozen=True)
class InpaintingErrors:
    """Root mean squares per element over the missing pixels of each image, averaged over images: estimates.

    Attributes:
        steps: By the name of the latent, from the top down; the last is the method's error.
        baseline: Of the filling itself.
        difference: The method's error less the baseline's, image by image; negative where the method is better.
        interval: 95 % confidence interval of the difference, from the normal approximation over images.
    """

    steps: dict[str, Quantity]
    baseline: Quantity
    difference: Quantity
    interval: tuple[float, float]


def inpainting_errors(x: Tensor, mask: Tensor, inpainting: Inpainting) -> InpaintingErrors:
    """Compare an inpainting with the originals, and with leaving the filling as it is.

    Args:
        x: The whole images, ``(n, *shape of x)``, two or more.
        mask: As :func:`inpaint` took it.
        inpainting: What it made.
    """
    missing = mask.to(x.device).expand_as(x).flatten(1)
    counts = missing.sum(1)

    def error(images: Tensor) -> Tensor:
        return (((images - x).flatten(1).square() * missing).sum(1) / counts).sqrt()

    unit = "per missing element"
    baseline, completed = error(inpainting.masked), error(inpainting.completed)
    difference = Quantity.mean(completed - baseline, "estimate", unit)
    margin = _Z_95 * (difference.standard_error or 0.0)
    return InpaintingErrors(
        {name: Quantity.mean(error(images), "estimate", unit) for name, images in inpainting.steps.items()},
        Quantity.mean(baseline, "estimate", unit),
        difference,
        (difference.value - margin, difference.value + margin),
    )
