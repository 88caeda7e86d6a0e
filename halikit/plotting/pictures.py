"""Pictures of states, as arrays of bytes ``(height, width, 3)``: images, sequences and volumes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from numpy.typing import NDArray
from torch import Tensor

from halikit.data.dataset import DataError, DataSet, named
from halikit.utils.files import write_atomically

__all__ = [
    "alternating_columns",
    "as_pixels",
    "as_png",
    "contact_sheet",
    "grid",
    "inpainting_rows",
    "is_drawable",
    "labelled_rows",
    "limits_of",
    "save_png",
    "strips",
]

# Images are enlarged by a whole factor until their shorter side has this many pixels.
_LEGIBLE = 48
# Pixels between images, and their grey value.
_GAP = 2
_BACKGROUND = 255
# With more classes than this, a contact sheet has no row for each class.
_CONTACT_ROWS = 20
_CONTACT_COLUMNS = 12
# Height and widths of the tile of a sequence in pixels, and pixels above and below its curves.
_CURVE_HEIGHT, _CURVE_WIDTHS, _CURVE_MARGIN = 64, (96, 192), 3
# Curves are drawn at so many times the resolution and then reduced, which makes smooth lines.
_FINER = 3
# Colours of the channels of a sequence, which repeat; background and zero line of its tile.
_CHANNELS = ("#1f4e9c", "#d1601a", "#2f8a3c", "#b0263a", "#7b4fa8", "#7a5a3c", "#c95fa6", "#5c5c5c")
_PAPER, _ZERO = "#f3f3f3", "#c8c8c8"

Limits = tuple[float, float]


def is_drawable(shape: Sequence[int]) -> bool:
    """Whether there are pictures of states of this shape: sequences, images and volumes."""
    return 2 <= len(shape) <= 4


def limits_of(*states: Tensor) -> Limits:
    """The values that are drawn lowest and highest (or black and white) in a picture of these states.

    Args:
        *states: ``(n, *shape)``, all of one shape.

    Returns:
        (−1, 1) for images. The lowest and the highest finite value for sequences. The first and the last percentile for
        volumes, so that a few far values leave the others visible; (−1, 1) if both are within it.
    """
    axes = states[0].dim() - 2
    values = np.concatenate([state.detach().float().cpu().numpy().ravel() for state in states])
    values = values[np.isfinite(values)]
    if axes == 2 or not values.size:
        return -1.0, 1.0
    low, high = map(float, np.percentile(values, (1, 99) if axes == 3 else (0, 100)))
    if axes == 3 and low >= -1 and high <= 1:
        return -1.0, 1.0
    return (low, high) if low < high else (low - 1, high + 1)


def as_pixels(states: Tensor, limits: Limits | None = None) -> NDArray[np.uint8]:
    """States as tiles of bytes: images themselves, the curves of sequences, the middle slices of volumes.

    A curve has its first value on the left; its channels have different colours. A volume shows the middle of its first
    axis. Values beyond the limits are clipped, and what is not a number is left white.

    Args:
        states: Images ``(n, C, H, W)`` in [−1, 1], sequences ``(n, C, T)`` or volumes ``(n, C, D, H, W)``. Of images
            and volumes with more than 3 channels the first three are shown, of 2 the first.
        limits: Values that are drawn lowest and highest, or black and white; by default :func:`limits_of` the states.

    Returns:
        ``(n, height, width, 3)``. Small images and slices are enlarged by a whole factor.

    Raises:
        ValueError: If there are no pictures of such states.
    """
    if not is_drawable(states.shape[1:]):
        raise ValueError(
            f"pictures are made of sequences (n, C, T), images (n, C, H, W) and volumes (n, C, D, H, W), "
            f"got {tuple(states.shape)}"
        )
    states = states.detach().float().cpu()
    low, high = limits or limits_of(states)
    if states.dim() == 3:
        return _curves(states, low, high)
    if states.dim() == 5:
        states = (states[:, :, states.shape[2] // 2] - low) * (2 / (high - low)) - 1
    states = states[:, :3] if states.shape[1] >= 3 else states[:, :1].expand(-1, 3, -1, -1)
    states = states.nan_to_num(1.0).clamp(-1, 1)
    pixels = ((states + 1) * 127.5).round().byte().numpy()
    factor = max(1, -(-_LEGIBLE // min(pixels.shape[2:])))
    return repeat(pixels, "n c h w -> n (h down) (w across) c", down=factor, across=factor)


def _curves(states: Tensor, low: float, high: float) -> NDArray[np.uint8]:
    """A tile with the curves of each sequence, ``(n, height, width, 3)``."""
    from PIL import Image, ImageDraw

    n, _, length = states.shape
    narrowest, widest = _CURVE_WIDTHS
    size = (min(max(narrowest, length), widest), _CURVE_HEIGHT)
    width, height = (_FINER * side for side in size)
    # A single value is drawn as a line across the tile.
    values = states.expand(-1, -1, 2) if length == 1 else states
    x = np.linspace(0, width - 1, values.shape[2])
    margin = _FINER * _CURVE_MARGIN

    def row(value: NDArray[np.float32] | float) -> Any:
        share = (np.clip(value, low, high) - low) / (high - low)
        return height - 1 - margin - share * (height - 1 - 2 * margin)

    tiles = np.empty((n, size[1], size[0], 3), np.uint8)
    for tile, sequence in zip(tiles, values.numpy(), strict=True):
        image = Image.new("RGB", (width, height), _PAPER)
        pen = ImageDraw.Draw(image)
        if low <= 0 <= high:
            pen.line([(0, row(0.0)), (width, row(0.0))], _ZERO, _FINER)
        for number, channel in enumerate(sequence):
            # A curve is interrupted where it has no finite value.
            for part in np.split(np.arange(len(channel)), np.flatnonzero(~np.isfinite(channel))):
                part = part[np.isfinite(channel[part])]
                if len(part) > 1:
                    points = np.stack([x[part], row(channel[part])], 1)
                    pen.line(points.ravel().tolist(), _CHANNELS[number % len(_CHANNELS)], round(1.4 * _FINER), "curve")
        tile[:] = np.asarray(image.reduce(_FINER))
    return tiles


def grid(images: Tensor, columns: int | None = None, limits: Limits | None = None) -> NDArray[np.uint8]:
    """Images side by side, row by row; sequences and volumes as :func:`as_pixels` shows them.

    Args:
        images: ``(n, C, H, W)`` in [−1, 1], ``(n, C, T)`` or ``(n, C, D, H, W)``.
        columns: Number of columns; the square root of n by default.
        limits: As in :func:`as_pixels`.

    Returns:
        One picture, ``(height, width, 3)``.
    """
    pixels = as_pixels(images, limits)
    columns = columns or max(1, round(len(pixels) ** 0.5))
    # Each tile has its gap above and on the left; the last row is filled up with empty tiles.
    tiles = np.pad(pixels, [(0, -len(pixels) % columns), (_GAP, 0), (_GAP, 0), (0, 0)], constant_values=_BACKGROUND)
    picture = rearrange(tiles, "(rows columns) h w c -> (rows h) (columns w) c", columns=columns)
    return np.pad(picture, [(0, _GAP), (0, _GAP), (0, 0)], constant_values=_BACKGROUND)


def labelled_rows(
    rows: Mapping[str, Tensor] | Sequence[tuple[str, Tensor]], headings: Sequence[str] = ()
) -> NDArray[np.uint8]:
    """Rows of images with names on the left, such as inputs above their reconstructions from each level (Fig. 1).

    All rows of sequences, or of volumes, have the same limits, so that they can be compared.

    Args:
        rows: ``(n, C, H, W)`` in [−1, 1], ``(n, C, T)`` or ``(n, C, D, H, W)`` by name, or pairs of name and images;
            all of one shape.
        headings: Headings of the columns.

    Returns:
        One picture, ``(height, width, 3)``.
    """
    from PIL import Image, ImageDraw, ImageFont

    pairs = list(rows.items()) if isinstance(rows, Mapping) else list(rows)
    font = ImageFont.load_default(14)
    margin = round(max(font.getlength(name) for name, _ in pairs)) + 12
    shared = limits_of(*(images for _, images in pairs))
    strips = []
    for name, images in pairs:
        strip = grid(images, len(images), shared)
        label = Image.new("RGB", (margin, len(strip)), (_BACKGROUND,) * 3)
        ImageDraw.Draw(label).text((margin - 6, len(strip) / 2), name, fill=(0, 0, 0), font=font, anchor="rm")
        strips.append(np.concatenate([np.asarray(label), strip], 1))
    if headings:
        width = strips[0].shape[1]
        head = Image.new("RGB", (width, 22), (_BACKGROUND,) * 3)
        column = (width - margin - _GAP) / len(pairs[0][1])
        for i, heading in enumerate(headings):
            ImageDraw.Draw(head).text((margin + (i + 0.5) * column, 12), heading, (0, 0, 0), font=font, anchor="mm")
        strips.insert(0, np.asarray(head))
    return np.concatenate(strips)


def alternating_columns(inputs: Tensor, reconstructions: Tensor, columns: int = 12) -> NDArray[np.uint8]:
    """Inputs in odd columns, and their reconstructions in even columns on the right (Fig. 7).

    Args:
        inputs: ``(n, C, H, W)`` in [−1, 1], ``(n, C, T)`` or ``(n, C, D, H, W)``.
        reconstructions: The same shape.
        columns: Number of columns, even.

    Returns:
        One picture, ``(height, width, 3)``.
    """
    pairs = [inputs.detach().float().cpu(), reconstructions.detach().float().cpu()]
    return grid(rearrange(pairs, "pair n ... -> (n pair) ..."), columns)


def inpainting_rows(x: Tensor, masked: Tensor, steps: Mapping[str, Tensor]) -> NDArray[np.uint8]:
    """The original images, the masked ones, and the result of each step (Fig. 4).

    Args:
        x: ``(n, C, H, W)`` in [−1, 1], ``(n, C, T)`` or ``(n, C, D, H, W)``.
        masked: The same shape.
        steps: The same shape after each step, by name: a latent reconstructed from, or what a search gives.
    """
    named = {name if name in ("draw", "mean", "mode") else f"from {name}": images for name, images in steps.items()}
    return labelled_rows({"x": x, "given": masked} | named)


def strips(
    names: Sequence[str], images: Tensor, values: Sequence[float], original: Tensor | None = None
) -> NDArray[np.uint8]:
    """A grid with a row for each base and a column for each value, and originals in the last column (Figs. 5 and 6).

    Args:
        names: Names of the rows.
        images: ``(rows, values, *shape)``, with a shape as in :func:`labelled_rows`.
        values: Values of the columns.
        original: Original images, ``(rows, *shape)``, if there are any.

    Returns:
        One picture, ``(height, width, 3)``.
    """
    headings = [f"{value:g}" for value in values]
    rows = list(images)
    if original is not None:
        rows = [torch.cat([row, image.unsqueeze(0)]) for row, image in zip(images, original, strict=True)]
        headings.append("original")
    return labelled_rows(list(zip(names, rows, strict=True)), headings)


def save_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture ``(height, width, 3)`` as a PNG file, atomically."""
    write_atomically(path, as_png(picture))


def as_png(picture: NDArray[np.uint8]) -> bytes:
    """The bytes of a PNG file of a picture ``(height, width, 3)``."""
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def contact_sheet(data: DataSet) -> NDArray[np.uint8]:
    """A picture of training images.

    With 2 to 20 classes there is one row for each class, with its first images. Otherwise the images are evenly spaced
    over the training part.

    Args:
        data: A data set.

    Returns:
        ``(height, width, 3)`` uint8.

    Raises:
        DataError: If the data are vectors.
    """
    if not is_drawable(data.shape):
        raise DataError(
            f"{data.spec}: a contact sheet needs images, sequences or volumes, but these are {named(data.shape)} of "
            f"shape {data.shape}"
        )
    train, labels = data.train, data.train.labels
    if labels is None or not 2 <= len(data.classes) <= _CONTACT_ROWS:
        return grid(
            train.batch(torch.linspace(0, len(train) - 1, min(len(train), _CONTACT_COLUMNS**2)).long()),
            _CONTACT_COLUMNS,
        )
    rows: dict[str, Tensor] = {}
    for label, name in enumerate(data.classes):
        some = (labels == label).nonzero()[:_CONTACT_COLUMNS, 0]
        blank = torch.full((_CONTACT_COLUMNS - len(some), *data.shape), math.nan)
        rows[name] = torch.cat([train.batch(some), blank])
    return labelled_rows(rows)
