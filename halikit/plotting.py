"""Pictures, as functions of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from halikit.files import write_atomically

__all__ = ["as_pixels", "grid", "labelled_rows", "save_png"]

# Images are enlarged by whole factors until their shorter side has this many pixels.
_LEGIBLE = 48
_GAP = 2
_BACKGROUND = 255


def as_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Images in [−1, 1] as bytes.

    Args:
        images: ``(n, C, H, W)`` with 1 or 3 channels; others show their first channel.

    Returns:
        ``(n, H, W, 3)``, enlarged to be legible.

    Raises:
        ValueError: If these are not images.
    """
    if images.dim() != 4:
        raise ValueError(f"pictures are made of images (n, C, H, W), got {tuple(images.shape)}")
    images = images.detach().float().cpu()
    if images.shape[1] != 3:
        images = images[:, :1].expand(-1, 3, -1, -1)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    factor = max(1, -(-_LEGIBLE // min(pixels.shape[1:3])))
    return pixels.repeat(factor, 1).repeat(factor, 2)


def grid(images: Tensor, columns: int | None = None) -> NDArray[np.uint8]:
    """Images side by side, row by row.

    Args:
        images: ``(n, C, H, W)`` in [−1, 1].
        columns: How many a row; the square root by default.

    Returns:
        One picture, ``(height, width, 3)``.
    """
    pixels = as_pixels(images)
    n, h, w, _ = pixels.shape
    columns = columns or max(1, round(n**0.5))
    rows = -(-n // columns)
    picture = np.full((rows * (h + _GAP) + _GAP, columns * (w + _GAP) + _GAP, 3), _BACKGROUND, np.uint8)
    for i, tile in enumerate(pixels):
        top, left = (i // columns) * (h + _GAP) + _GAP, (i % columns) * (w + _GAP) + _GAP
        picture[top : top + h, left : left + w] = tile
    return picture


def labelled_rows(rows: Mapping[str, Tensor]) -> NDArray[np.uint8]:
    """Rows of images with their names to the left: inputs above their reconstructions from every level (Fig. 1).

    Args:
        rows: ``(n, C, H, W)`` in [−1, 1] by name, all of one shape.

    Returns:
        One picture, ``(height, width, 3)``.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(14)
    margin = round(max(font.getlength(name) for name in rows)) + 12
    strips = []
    for name, images in rows.items():
        strip = grid(images, len(images))
        label = Image.new("RGB", (margin, len(strip)), (_BACKGROUND,) * 3)
        ImageDraw.Draw(label).text((margin - 6, len(strip) / 2), name, fill=(0, 0, 0), font=font, anchor="rm")
        strips.append(np.concatenate([np.asarray(label), strip], 1))
    return np.concatenate(strips)


def alternating_columns(inputs: Tensor, reconstructions: Tensor, columns: int = 12) -> NDArray[np.uint8]:
    """Inputs in odd columns, their reconstructions in the even ones to the right (Fig. 7).

    Args:
        inputs: ``(n, C, H, W)`` in [−1, 1].
        reconstructions: The same shape.
        columns: How many a row, even.

    Returns:
        One picture, ``(height, width, 3)``.
    """
    both = np.stack([inputs.detach().cpu().numpy(), reconstructions.detach().cpu().numpy()], 1)
    return grid(Tensor(both.reshape(-1, *inputs.shape[1:])), columns)


def save_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture ``(height, width, 3)``, whole or not at all."""
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
