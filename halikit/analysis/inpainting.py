"""Inpainting by a hierarchy that was not trained for it: the procedure of section 6.1 (Fig. 4), and a search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from halikit.analysis.batched import batches
from halikit.analysis.latent_search import explain
from halikit.analysis.quantity import Quantity
from halikit.data import Split
from halikit.hierarchy import Hierarchy

__all__ = [
    "Inpainting",
    "InpaintingErrors",
    "centre_mask",
    "inpaint",
    "inpaint_by_search",
    "inpainting_errors",
    "mean_image",
    "rectangle_mask",
]

# Number of standard errors on either side of the value in a 95 % interval, by the normal approximation.
_Z_95 = 1.96
# Images read at a time.
_BATCH = 1000
# Images searched for at a time, with all activations of the decoder in memory.
_SEARCHED = 100


def mean_image(part: Split) -> Tensor:
    """The mean of the images of a part, ``(C, H, W)``: what missing pixels are filled with at first."""
    total = torch.zeros(part.images.shape[1:], dtype=torch.float64)
    for _, images in batches(part, _BATCH):
        total += images.cpu().double().sum(0)
    return (total / len(part)).float()


def centre_mask(shape: tuple[int, ...], share: float = 0.5) -> Tensor:
    """A mask of the middle of images, sequences or volumes.

    Args:
        shape: ``(C, H, W)``, ``(C, T)`` or ``(C, D, H, W)``.
        share: Share of each side (height and width of an image) that is missing, in (0, 1].

    Returns:
        ``(H, W)`` bool, or ``(T,)`` or ``(D, H, W)``, True where pixels are missing.

    Raises:
        ValueError: If the share is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of the height and width that is missing is above 0 and at most 1, got {share}")
    mask = torch.zeros(shape[1:], dtype=torch.bool)
    missing = [(side, max(1, round(side * share))) for side in shape[1:]]
    mask[tuple(slice((side - part) // 2, (side - part) // 2 + part) for side, part in missing)] = True
    return mask


def rectangle_mask(shape: tuple[int, ...], top: int, left: int, height: int, width: int) -> Tensor:
    """A mask of a rectangle of images, in pixels.

    Args:
        shape: ``(C, H, W)``.
        top: First missing row, from 0.
        left: First missing column, from 0.
        height: Number of missing rows.
        width: Number of missing columns.

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
    """Images whose missing pixels were filled in.

    Attributes:
        masked: ``(n, *shape of x)``, the images with the initial filling.
        steps: ``(n, *shape of x)`` after each step. Those of :func:`inpaint` have the name of the latent reconstructed
            from: ``zL`` first, ``z1`` last. Those of :func:`inpaint_by_search` are ``draw``, the first draw, and
            ``mean``, the mean of all; or ``mode`` alone.
    """

    masked: Tensor
    steps: dict[str, Tensor]

    @property
    def completed(self) -> Tensor:
        """The last step, ``(n, *shape of x)``."""
        return list(self.steps.values())[-1]


@torch.no_grad()
def inpaint(hierarchy: Hierarchy, x: Tensor, mask: Tensor, *, fill: Tensor | float = 0.0) -> Inpainting:
    """Fill in missing pixels, from the top of the hierarchy down (section 6.1).

    The masked image is reconstructed along the means from level L. The known pixels are put back unchanged. The result
    is reconstructed from level L − 1, and so on down to level 1.

    Args:
        hierarchy: A hierarchy in evaluation mode.
        x: ``(n, *shape of x)``; its missing pixels are not used.
        mask: Bool, True where pixels are missing; broadcasts to ``x``: ``(H, W)`` is one mask for all images.
        fill: Initial value of missing pixels; a number, or a tensor that broadcasts to ``x``, such as the mean image.

    Raises:
        ValueError: If the mask does not fit.
    """
    mask, masked = _filled(x, mask, fill)
    steps: dict[str, Tensor] = {}
    current = masked
    for level in range(len(hierarchy), 0, -1):
        current = torch.where(mask, hierarchy.reconstruct(current, level), x)
        steps[hierarchy.spaces[level].name] = current
    return Inpainting(masked, steps)


def inpaint_by_search(
    hierarchy: Hierarchy,
    x: Tensor,
    mask: Tensor,
    *,
    fill: Tensor | float = 0.0,
    draws: int = 16,
    steps: int = 50,
    scale: float | None = None,
    generator: torch.Generator | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Inpainting:
    """Fill in missing pixels with what the decoder makes of latents that explain the known pixels.

    Each draw is an approximate draw from the posterior given the known pixels, see
    :func:`halikit.analysis.latent_search.explain`. Their mean estimates the conditional mean of the missing pixels,
    which has the smallest possible root mean square error.

    Args:
        hierarchy: A hierarchy; used in evaluation mode.
        x: ``(n, *shape of x)``; its missing pixels are not used.
        mask: Bool, True where pixels are missing; broadcasts to ``x``: ``(H, W)`` is one mask for all images.
        fill: Value of missing pixels for the encoder, from whose latents the search starts; as in :func:`inpaint`.
        draws: Number of draws; with 0 there is one search, for the most probable latents.
        steps: Steps of each search.
        scale: Standard deviation of known pixels around the decoder's mean; by default it is estimated for each image.
        generator: Random generator; torch's global one by default.
        on_progress: Called with the number of searches done and their total.

    Raises:
        ValueError: If the mask does not fit, the number of draws is negative or that of steps is not positive.
    """
    if draws < 0 or steps < 1:
        raise ValueError(f"draws is 0 or more and steps 1 or more, got {draws} and {steps}")
    mask, masked = _filled(x, mask, fill)
    known = ~mask.expand_as(x)
    report = on_progress or (lambda done, total: None)
    count = max(draws, 1)
    first, total = [], torch.zeros_like(x)
    for rows, part in batches(masked, _SEARCHED):
        for index in range(count):
            report(rows.start * count + index * len(part), len(x) * count)
            found = explain(
                hierarchy.rows(rows),
                part,
                known[rows],
                draw=draws > 0,
                steps=steps,
                scale=scale,
                generator=generator,
            )
            if index == 0:
                first.append(found)
            total[rows] += found
    report(len(x) * count, len(x) * count)
    results = {"draw": torch.cat(first), "mean": total / count} if draws else {"mode": total}
    return Inpainting(masked, {name: torch.where(mask, found, x) for name, found in results.items()})


def _filled(x: Tensor, mask: Tensor, fill: Tensor | float) -> tuple[Tensor, Tensor]:
    """The mask on the device of ``x``, and ``x`` with the initial filling.

    Raises:
        ValueError: If the mask does not fit.
    """
    fits = mask.dim() <= x.dim() and all(
        side in (1, whole) for side, whole in zip(reversed(mask.shape), reversed(x.shape), strict=False)
    )
    if mask.dtype != torch.bool or not fits:
        raise ValueError(f"a mask is bool and broadcasts to {tuple(x.shape)}, got {mask.dtype} of {tuple(mask.shape)}")
    mask = mask.to(x.device)
    return mask, torch.where(mask, torch.as_tensor(fill, dtype=x.dtype, device=x.device), x)


@dataclass(frozen=True)
class InpaintingErrors:
    """Root mean square errors over the missing elements of all images, in units of x: estimates.

    Attributes:
        steps: Errors after each step, by the names of :attr:`Inpainting.steps`; the last is the method's error.
        baseline: Error of the initial filling.
        difference: The method's error less the baseline's; negative where the method is better.
        interval: 95 % confidence interval of the difference. The errors of both are paired by image (delta method), and
            the distribution is taken for normal.
    """

    steps: dict[str, Quantity]
    baseline: Quantity
    difference: Quantity
    interval: tuple[float, float]


def inpainting_errors(x: Tensor, mask: Tensor, inpainting: Inpainting) -> InpaintingErrors:
    """Compare an inpainting with the original images, and with the initial filling.

    Args:
        x: The original images, ``(n, *shape of x)``, two or more.
        mask: The mask that was given.
        inpainting: The result of :func:`inpaint` or :func:`inpaint_by_search`.
    """
    missing = mask.to(x.device).expand_as(x).flatten(1)
    elements = missing.sum() / len(x)

    def squares(images: Tensor) -> Tensor:
        """``(n,)``, such that their mean is the mean over all missing elements of all images."""
        return ((images - x).flatten(1).square() * missing).sum(1) / elements

    unit = "per missing element"
    baseline, completed = squares(inpainting.masked), squares(inpainting.completed)
    difference = Quantity.root_mean_square_difference(completed, baseline, "estimate", unit)
    margin = _Z_95 * (difference.standard_error or 0.0)
    return InpaintingErrors(
        {
            name: Quantity.root_mean_square(squares(images), "estimate", unit)
            for name, images in inpainting.steps.items()
        },
        Quantity.root_mean_square(baseline, "estimate", unit),
        difference,
        (difference.value - margin, difference.value + margin),
    )
